"""The layer of InterFormer.

Legend: B examples, N tokens, E events of all examples, CLS tokens included, K tokens of X_sum, of which the CLS tokens
are copies, S tokens of S_sum, D width, R width of the interaction's representation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from exfm.components import BackboneInputs, ComponentSpec, JaggedSequence
from exfm.layers import ActivationName, AttentionPooling, mlp, norm
from exfm_plugins.backbones.interformer.sequences import OptionalNorm, SequenceArch

GateForm = Literal["multiplicative", "printed"]


@dataclass(frozen=True)
class InterFormerLayerSpec:
    """Options of every layer of a model; see the fields of `interformer`."""

    interaction: ComponentSpec
    interaction_hidden: tuple[int, ...]
    num_cls: int
    num_pma: int
    num_recent: int
    heads: int
    gate: GateForm
    residual: OptionalNorm
    activation: ActivationName

    @property
    def summary_names(self) -> tuple[str, ...]:
        """The names of the S tokens of S_sum."""
        names: list[str] = []
        for kind, count in (("cls", self.num_cls), ("pma", self.num_pma), ("recent", self.num_recent)):
            names += [f"{kind}:{index}" for index in range(count)]
        return tuple(names)

    def residual_norm(self, dim: int) -> nn.Module | None:
        """Builds the norm of the sum of an arch's input and output; None where inputs are not added."""
        return None if self.residual == "none" else norm(self.residual, dim)


class SummaryGate(nn.Module):
    """``sigmoid(MLP(X)) * X``, or as printed ``sigmoid(X * MLP(X))``, token by token; the MLP is a linear layer.

    Args:
        dim: D.
        form: the product to take, ``multiplicative`` or ``printed``.
    """

    def __init__(self, dim: int, form: GateForm) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.form = form

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps (B, N, D) to (B, N, D)."""
        mapped_BND: Tensor = self.linear(tokens_BND)
        if self.form == "printed":
            return (tokens_BND * mapped_BND).sigmoid()
        return mapped_BND.sigmoid() * tokens_BND


class TokenSummary(nn.Module):
    """``X_sum = Gate(MLP_lce(X))``: N tokens become K, by a linear map of the token axis.

    Args:
        tokens: N.
        dim: D.
        spec: see ``InterFormerLayerSpec``.
    """

    def __init__(self, tokens: int, dim: int, spec: InterFormerLayerSpec) -> None:
        super().__init__()
        self.compression = nn.Linear(tokens, spec.num_cls, bias=False)
        self.gate = SummaryGate(dim, spec.gate)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, K, D)."""
        summary_BKD: Tensor = self.gate(self.compression(tokens_BND.mT).mT)
        return summary_BKD


class SequenceSummary(nn.Module):
    """``S_sum = Gate([CLS || PMA || recent])``: the CLS tokens, learned queries' attention over all, the newest events.

    Recent events are newest first, zeros before the gate where there are fewer.

    Args:
        dim: D.
        spec: see ``InterFormerLayerSpec``.
    """

    def __init__(self, dim: int, spec: InterFormerLayerSpec) -> None:
        super().__init__()
        self.num_cls, self.num_recent = spec.num_cls, spec.num_recent
        self.pma = AttentionPooling(dim, spec.heads, spec.num_pma)
        self.gate = SummaryGate(dim, spec.gate)

    def forward(self, sequence: JaggedSequence) -> Tensor:
        """Maps events (E, D) to (B, S, D)."""
        device = sequence.offsets.device
        # The CLS tokens are the oldest events of an example.
        index_BK = sequence.offsets[:-1].unsqueeze(1) + torch.arange(self.num_cls, device=device)
        cls_BKD = sequence.values_ED[index_BK]
        # The newest events of a short history include its CLS tokens, which are no events.
        missing = torch.arange(self.num_recent, device=device) >= (sequence.lengths - self.num_cls).unsqueeze(1)
        recent = sequence.newest(self.num_recent).masked_fill(missing.unsqueeze(2), 0)
        summary_BSD: Tensor = self.gate(torch.cat([cls_BKD, self.pma(sequence), recent], dim=1))
        return summary_BSD


class InteractionArch(nn.Module):
    """``X' = MLP(Inter([X || S_sum]))``, the MLP mapping the interaction's representation to N tokens.

    Args:
        names: of the N tokens.
        summaries: names of the tokens of S_sum; none without sequences.
        dim: D.
        spec: see ``InterFormerLayerSpec``.
    """

    def __init__(
        self, names: tuple[str, ...], summaries: tuple[str, ...], dim: int, spec: InterFormerLayerSpec
    ) -> None:
        super().__init__()
        self.interaction = spec.interaction.build(BackboneInputs((*names, *summaries), dim))
        widths = [self.interaction.output_dim, *spec.interaction_hidden, len(names) * dim]
        self.mlp = mlp(widths, spec.activation)
        self.norm = spec.residual_norm(dim)

    def forward(self, tokens_BND: Tensor, joined_BMD: Tensor) -> tuple[Tensor, Tensor]:
        """Maps tokens (B, N, D), and the same followed by the summary, to tokens (B, N, D).

        Returns:
            The tokens, and the interaction's representation (B, R).
        """
        representation_BR: Tensor = self.interaction(joined_BMD, {})
        mixed_BND: Tensor = self.mlp(representation_BR).view_as(tokens_BND)
        if self.norm is not None:
            mixed_BND = self.norm(tokens_BND + mixed_BND)
        return mixed_BND, representation_BR


class InterFormerLayer(nn.Module):
    """Cross arch, then interaction arch and sequence arch: given the summaries, neither needs the other's output.

    Args:
        inputs: of the model.
        spec: see ``InterFormerLayerSpec``.
        queries: the most recent events that have a query, besides the CLS tokens; None for all.
        first: whether this layer prepends the CLS tokens to the events.
    """

    def __init__(self, inputs: BackboneInputs, spec: InterFormerLayerSpec, queries: int | None, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.token_summary = TokenSummary(len(inputs.tokens), inputs.dim, spec)
        self.sequence_summary = SequenceSummary(inputs.dim, spec)
        self.interaction_arch = InteractionArch(inputs.tokens, spec.summary_names, inputs.dim, spec)
        residual = spec.residual_norm(inputs.dim)
        self.sequence_arch = SequenceArch(inputs.dim, spec.heads, spec.num_cls, queries, residual)

    def forward(self, tokens_BND: Tensor, sequence: JaggedSequence) -> tuple[Tensor, Tensor, JaggedSequence]:
        """Maps tokens (B, N, D) and events (E, D) to the same of the next layer.

        Returns:
            Tokens, the interaction's representation (B, R), and events.
        """
        token_summary_BKD = self.token_summary(tokens_BND)
        if self.first:
            sequence = sequence.prepend(token_summary_BKD)
        joined_BMD = torch.cat([tokens_BND, self.sequence_summary(sequence)], dim=1)
        tokens_BND, representation_BR = self.interaction_arch(tokens_BND, joined_BMD)
        return tokens_BND, representation_BR, self.sequence_arch(sequence, token_summary_BKD)
