"""Provides the base of encoders that stack causal layers on a history and summarize the result.

Legend: B examples, E events of all examples, N context tokens, K summary tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import Tensor, nn

from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.sequence_encoder import EncoderInputs, SequenceEncoder
from exfm.layers.attention import AttentionPooling
from exfm.layers.candidate_meeting import sum_tokens
from exfm.layers.norm import NormName, norm

SummaryName = Literal["last", "mean", "target"]


class HistoryEncoder(SequenceEncoder):
    """Stacks layers on the events, normalizes the result, and summarizes it.

    If the context has tokens of the candidate item, their sum may be appended to the history as its newest event.

    Args:
        config: config of the component.
        inputs: inputs of the encoder.
        layers: modules that map a JaggedSequence to a JaggedSequence of the same examples.
        summary: last: the newest events; mean: the mean of the last layer's events; target: attention over these with
            the candidate item as query, or with a learned query if there is no candidate.
        recent: K with ``last``.
        heads: heads of the attention with ``target``.
        norm_name: norm before the summary.
        append_target: whether the candidate item, if the context has its tokens, is the newest event.

    Raises:
        ValueError: the heads do not divide the width, with ``target``.
    """

    def __init__(
        self,
        config: ComponentConfig,
        inputs: EncoderInputs,
        layers: Iterable[nn.Module],
        *,
        summary: SummaryName,
        recent: int = 1,
        heads: int,
        norm_name: NormName,
        append_target: bool,
    ) -> None:
        super().__init__(config, inputs)
        dim = inputs.dim
        self.num_tokens = recent if summary == "last" else 1
        self.append_target = append_target and bool(inputs.targets)
        self.mean = summary == "mean"
        self.layers = nn.ModuleList(layers)
        self.top_norm = norm(norm_name, dim)
        self.pooling: AttentionPooling | None = None
        self.shift: nn.Linear | None = None
        if summary == "target":
            self.pooling = AttentionPooling(dim, heads, 1)
            if inputs.targets:  # the candidate item shifts the learned query
                self.shift = nn.Linear(dim, dim, bias=False)

    def forward(self, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
        """Maps events (E, D) with offsets, and context tokens (B, N, D), to summary tokens (B, K, D)."""
        if self.append_target:
            sequence = sequence.append(sum_tokens(context_BND, self.inputs.targets).unsqueeze(1))
        for layer in self.layers:
            sequence = layer(sequence)
        top = sequence.with_values(self.top_norm(sequence.values_ED))
        if self.pooling is not None:
            shift_BD: Tensor | None = None
            if self.shift is not None:
                shift_BD = self.shift(sum_tokens(context_BND, self.inputs.targets))
            summary_BKD: Tensor = self.pooling(top, shift_BD)
            return summary_BKD
        if self.mean:
            return top.mean().unsqueeze(1)
        return top.newest(self.num_tokens)
