"""The modules of a GEM layer.

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
class GemLayerSpec:
    """Options of every layer of a model; see the fields of `gem`."""

    interaction: ComponentSpec
    encoder: ComponentSpec
    compressed: int
    ffn: int
    heads: int
    activation: ActivationName
    norm: NormName
    target: TargetName


class TokenGate(nn.Module):
    """``sigmoid(W x + b) * x`` on every token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps (B, N, D) to (B, N, D)."""
        gate_BND: Tensor = self.linear(tokens_BND).sigmoid()
        return gate_BND * tokens_BND


class FiLMFFN(nn.Module):
    """``F + W_2 act((1 + g) * (W_1 Norm(F)) + b)`` on every event; ``g`` and ``b`` are maps of the example's tokens.

    Scale and shift of the hidden units (FiLM, arXiv 1709.07871) instead of InterFormer's matrix for each example: an
    event costs as much as in a feed-forward network that is the same for all examples.

    Args:
        dim: D.
        hidden: H.
        compressed: C, tokens that ``g`` and ``b`` are maps of.
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
        # A map of each example, then copied to its events, because a map of each event would cost more.
        scale_shift_B2H = self.scale_shift(compressed_BCD.flatten(1))
        scale_EH, shift_EH = scale_shift_B2H.index_select(0, example_E).chunk(2, dim=1)
        hidden_EH = self.first(self.norm(sequence.values_ED))
        update_ED = self.second(self.activation(hidden_EH + hidden_EH * scale_EH + shift_EH))
        return sequence.with_values(sequence.values_ED + update_ED)


class History(nn.Module):
    """A layer's modules for a sequence: tokens refine its events, and an encoder summarises them.

    ``X_sum = Gate(W X)``, ``F' = PersonalisedFFN(F; X_sum)``, ``S_sum = Gate(Encoder(F', [X_sum || t]))``. The encoder
    compares events with the candidate item, the input's tokens ``t`` that share a table with the sequence, or with
    ``X_sum`` where there are no such tokens.

    Args:
        tokens: N.
        sequence: its name, its longest history and its candidate item.
        dim: D.
        spec: see ``GemLayerSpec``.
    """

    def __init__(self, tokens: int, sequence: SequenceShape, dim: int, spec: GemLayerSpec) -> None:
        super().__init__()
        self.compression = nn.Linear(tokens, spec.compressed, bias=False)
        self.compressed_gate = TokenGate(dim)
        self.ffn = FiLMFFN(dim, spec.ffn * dim, spec.compressed, spec.activation, spec.norm)
        self.targets = list(sequence.targets) if spec.target == "item" else []
        compressed = [f"compressed:{index}" for index in range(spec.compressed)]
        candidates = [f"candidate:{index}" for index in range(len(self.targets))]
        names = (*compressed, *candidates)
        # The candidate's tokens follow the compressed tokens in the context.
        targets = range(len(compressed), len(names)) if candidates else range(len(compressed))
        inputs = EncoderInputs(sequence.name, dim, sequence.max_length, names, tuple(targets), sequence.times)
        self.encoder = spec.encoder.build(inputs)
        self.num_tokens: int = self.encoder.num_tokens
        self.summary_gate = TokenGate(dim)

    def forward(self, tokens_BND: Tensor, sequence: JaggedSequence, input_BND: Tensor) -> tuple[Tensor, JaggedSequence]:
        """Maps tokens (B, N, D) and events (E, D) to summary tokens (B, K, D) and refined events (E, D).

        Args:
            tokens_BND: X.
            sequence: F.
            input_BND: the input tokens of the first layer, which include the candidate item.
        """
        compressed_BCD = self.compressed_gate(self.compression(tokens_BND.mT).mT)
        refined = self.ffn(sequence, compressed_BCD)
        context_BCD = torch.cat([compressed_BCD, *(input_BND[:, [index]] for index in self.targets)], dim=1)
        return self.summary_gate(self.encoder(refined, context_BCD)), refined


class GemLayer(nn.Module):
    """Summarises histories, mixes tokens and summaries, and lets tokens attend over those of earlier layers.

    ``X' = Norm(X + W Inter([X || S_sum, ...]))`` and, past the first layer, ``X' = Norm(X' + MHA(X', earlier))``.

    Args:
        inputs: of the model.
        spec: see ``GemLayerSpec``.
        first: whether this is the first layer, which has no earlier layers to attend over.
    """

    def __init__(self, inputs: BackboneInputs, spec: GemLayerSpec, *, first: bool) -> None:
        super().__init__()
        count, dim = len(inputs.tokens), inputs.dim
        histories = [History(count, sequence, dim, spec) for sequence in inputs.sequences]
        self.histories = nn.ModuleList(histories)
        summaries: list[str] = []
        for sequence, history in zip(inputs.sequences, histories, strict=True):
            summaries += [f"{sequence.name}:{index}" for index in range(history.num_tokens)]
        self.num_summaries = len(summaries)
        self.interaction = spec.interaction.build(BackboneInputs((*inputs.tokens, *summaries), dim))
        self.expansion = nn.Linear(self.interaction.output_dim, count * dim)
        self.norm = norm(spec.norm, dim)
        self.cross_layer: Attention | None = None
        self.cross_layer_norm: nn.Module | None = None
        if not first:
            self.cross_layer = Attention(dim, spec.heads)
            self.cross_layer_norm = norm(spec.norm, dim)

    def forward(
        self, tokens_BND: Tensor, earlier_BMD: Tensor, sequences: Sequence[JaggedSequence]
    ) -> tuple[Tensor, Tensor, list[JaggedSequence]]:
        """Returns tokens (B, N, D), summary tokens of all sequences (B, K, D), and the refined sequences."""
        # The tokens of all earlier layers begin with the input.
        input_BND = earlier_BMD[:, : tokens_BND.shape[1]]
        summaries: list[Tensor] = []
        refined: list[JaggedSequence] = []
        for history, sequence in zip(self.histories, sequences, strict=True):
            summary_BKD, refined_sequence = history(tokens_BND, sequence, input_BND)
            summaries.append(summary_BKD)
            refined.append(refined_sequence)
        # No tokens first, because torch.cat refuses an empty list where there are no sequences.
        summaries_BKD = torch.cat([tokens_BND[:, :0], *summaries], dim=1)
        mixed_BR = self.interaction(torch.cat([tokens_BND, summaries_BKD], dim=1), {})
        tokens_BND = self.norm(tokens_BND + self.expansion(mixed_BR).view_as(tokens_BND))
        if self.cross_layer is not None and self.cross_layer_norm is not None:
            tokens_BND = self.cross_layer_norm(tokens_BND + self.cross_layer(tokens_BND, earlier_BMD))
        return tokens_BND, summaries_BKD, refined


class DomainGate(nn.Module):
    """``2 sigmoid(MLP([d || sg(x)])) * x``: a gate by the domain's token ``d`` (PEPNet, arXiv 2302.01115).

    As published, ``sg`` stops the gradient through the gate to ``x``, so that the gate learns to select values and
    does not change the shared trunk.

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
        # Twice the sigmoid, as published: a gate that has learned nothing is about 1.
        gate_BI: Tensor = 2 * self.mlp(torch.cat([domain_BW, values_BI.detach()], dim=1)).sigmoid()
        return gate_BI * values_BI
