"""The parts of a GEM layer.

Legend: B examples, N tokens, E events of all examples, C compressed tokens, K summary tokens, M tokens of all earlier
layers, D width, H hidden width, I width that a domain gates, W width of the domain's token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from exfm.components import BackboneInputs, ComponentSpec, EncoderInputs, JaggedSequence, SequenceShape
from exfm.layers import ActivationName, Attention, NormName, activation, mlp, norm

TargetName = Literal["item", "compressed"]


@dataclass(frozen=True)
class LayerShape:
    """What the layers of one model have in common; the fields of `gem` say what each is."""

    interaction: ComponentSpec
    encoder: ComponentSpec
    compressed: int
    ffn: int
    heads: int
    activation: ActivationName
    norm: NormName
    target: TargetName


class Gate(nn.Module):
    """``sigmoid(W x + b) * x`` on every token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps (B, N, D) to (B, N, D)."""
        gate_BND: Tensor = self.linear(tokens_BND).sigmoid()
        return gate_BND * tokens_BND


class PersonalisedFFN(nn.Module):
    """``F + W_2 act((1 + g) * (W_1 Norm(F)) + b)`` on every event, with ``g`` and ``b`` made of its example's tokens.

    Scale and shift of the hidden units (FiLM, arXiv 1709.07871) instead of InterFormer's matrix for each example: an
    event costs what it costs in a feed-forward network that is the same for everyone.

    Args:
        dim: D.
        hidden: H.
        compressed: C, tokens that ``g`` and ``b`` are made of.
        activation_name: between the two linear maps.
        norm_name: before them.
    """

    def __init__(
        self, dim: int, hidden: int, compressed: int, activation_name: ActivationName, norm_name: NormName
    ) -> None:
        super().__init__()
        self.norm = norm(norm_name, dim)
        self.first = nn.Linear(dim, hidden, bias=False)
        self.scale_shift = nn.Linear(compressed * dim, 2 * hidden)
        self.activation = activation(activation_name)
        self.second = nn.Linear(hidden, dim)

    def forward(self, sequence: JaggedSequence, compressed_BCD: Tensor) -> JaggedSequence:
        """Maps events (E, D) to events (E, D), given compressed tokens (B, C, D)."""
        example_E = sequence.example_index()
        of_example_B2H = self.scale_shift(compressed_BCD.flatten(1))
        scale_EH, shift_EH = of_example_B2H.index_select(0, example_E).chunk(2, dim=1)
        hidden_EH = self.first(self.norm(sequence.values_ED))
        update_ED = self.second(self.activation(hidden_EH + hidden_EH * scale_EH + shift_EH))
        return sequence.with_values(sequence.values_ED + update_ED)


class History(nn.Module):
    """What one layer does with one sequence: tokens refine all its events, and an encoder summarises them.

    ``X_sum = Gate(W X)``, ``F' = PersonalisedFFN(F; X_sum)``, ``S_sum = Gate(Encoder(F', [X_sum || t]))``. The encoder
    compares events with the candidate item, the input's tokens ``t`` that share a table with the sequence; where there
    are none, with ``X_sum``.

    Args:
        tokens: N.
        sequence: its name, its longest history and its candidate item.
        dim: D.
        shape: see ``LayerShape``.
    """

    def __init__(self, tokens: int, sequence: SequenceShape, dim: int, shape: LayerShape) -> None:
        super().__init__()
        self.compression = nn.Linear(tokens, shape.compressed, bias=False)
        self.compressed_gate = Gate(dim)
        self.ffn = PersonalisedFFN(dim, shape.ffn * dim, shape.compressed, shape.activation, shape.norm)
        self.targets = list(sequence.targets) if shape.target == "item" else []
        compressed = [f"compressed:{place}" for place in range(shape.compressed)]
        names = (*compressed, *(f"candidate:{place}" for place in range(len(self.targets))))
        places = tuple(range(len(compressed), len(names))) or tuple(range(len(compressed)))
        inputs = EncoderInputs(sequence.name, dim, sequence.max_length, names, places, sequence.times)
        self.encoder = shape.encoder.build(inputs)
        self.num_tokens: int = self.encoder.num_tokens
        self.summary_gate = Gate(dim)

    def forward(self, tokens_BND: Tensor, sequence: JaggedSequence, input_BND: Tensor) -> tuple[Tensor, JaggedSequence]:
        """Maps tokens (B, N, D) and events (E, D) to summary tokens (B, K, D) and refined events (E, D).

        Args:
            tokens_BND: X.
            sequence: F.
            input_BND: the tokens that the first layer gets, with the candidate item among them.
        """
        compressed_BCD = self.compressed_gate(self.compression(tokens_BND.mT).mT)
        refined = self.ffn(sequence, compressed_BCD)
        context_BCD = torch.cat([compressed_BCD, *(input_BND[:, [place]] for place in self.targets)], dim=1)
        return self.summary_gate(self.encoder(refined, context_BCD)), refined


class GemLayer(nn.Module):
    """Histories are summarised, the interaction mixes tokens and summaries, and tokens look back at earlier layers.

    ``X' = Norm(X + W Inter([X || S_sum, ...]))`` and, past the first layer, ``X' = Norm(X' + MHA(X', earlier))``.

    Args:
        inputs: of the model.
        shape: see ``LayerShape``.
        first: whether there are no earlier layers.
    """

    def __init__(self, inputs: BackboneInputs, shape: LayerShape, *, first: bool) -> None:
        super().__init__()
        count, dim = len(inputs.tokens), inputs.dim
        histories = [History(count, sequence, dim, shape) for sequence in inputs.sequences]
        self.histories = nn.ModuleList(histories)
        summaries = [
            f"{sequence.name}:{place}"
            for sequence, history in zip(inputs.sequences, histories, strict=True)
            for place in range(history.num_tokens)
        ]
        self.num_summaries = len(summaries)
        self.interaction = shape.interaction.build(BackboneInputs((*inputs.tokens, *summaries), dim))
        self.expansion = nn.Linear(self.interaction.output_dim, count * dim)
        self.norm = norm(shape.norm, dim)
        self.cross_layer = None if first else Attention(dim, shape.heads)
        self.cross_layer_norm = None if first else norm(shape.norm, dim)

    def forward(
        self, tokens_BND: Tensor, earlier_BMD: Tensor, sequences: Sequence[JaggedSequence]
    ) -> tuple[Tensor, Tensor, list[JaggedSequence]]:
        """Returns tokens (B, N, D), summary tokens of all sequences (B, K, D), and the refined sequences."""
        input_BND = earlier_BMD[:, : tokens_BND.shape[1]]
        pairs = [history(tokens_BND, part, input_BND) for history, part in zip(self.histories, sequences, strict=True)]
        summaries_BKD = torch.cat([tokens_BND[:, :0], *(summary for summary, _ in pairs)], dim=1)
        mixed_BR = self.interaction(torch.cat([tokens_BND, summaries_BKD], dim=1), {})
        tokens_BND = self.norm(tokens_BND + self.expansion(mixed_BR).view_as(tokens_BND))
        if self.cross_layer is not None and self.cross_layer_norm is not None:
            tokens_BND = self.cross_layer_norm(tokens_BND + self.cross_layer(tokens_BND, earlier_BMD))
        return tokens_BND, summaries_BKD, [refined for _, refined in pairs]


class DomainGate(nn.Module):
    """``2 sigmoid(MLP([d || sg(x)])) * x``: the domain's token says what counts (PEPNet, arXiv 2302.01115).

    As published, no gradient goes through the gate to ``x``: a domain learns what to let through, and does not bend
    the shared trunk to its gate.

    Args:
        domain: W.
        width: I.
        hidden: width of the MLP's hidden layer.
    """

    def __init__(self, domain: int, width: int, hidden: int) -> None:
        super().__init__()
        self.mlp = mlp([domain + width, hidden, width], "relu")

    def forward(self, values_BI: Tensor, domain_BW: Tensor) -> Tensor:
        """Maps values (B, I) and the domain's token (B, W) to values (B, I)."""
        gate_BI: Tensor = 2 * self.mlp(torch.cat([domain_BW, values_BI.detach()], dim=1)).sigmoid()
        return gate_BI * values_BI
