"""InterFormer's modules of events: the mask at the input, and the sequence arch of a layer.

Legend: B examples, E events of all examples, CLS tokens included, Q those that are kept, K tokens of X_sum, of which
the CLS tokens are copies, D width, W = D times the sequences that are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from exfm.components import JaggedSequence
from exfm.layers import ActivationName, CandidateMeeting, NormName, jagged_attention, mlp, norm, rotate

OptionalNorm = NormName | Literal["none"]


def _norm(name: OptionalNorm, dim: int) -> nn.Module:
    return nn.Identity() if name == "none" else norm(name, dim)


class CandidateMeetings(nn.Module):
    """``Norm([e + W (e * t) || t])``: every event ``e`` meets its example's candidate item ``t``, which follows them.

    There is a ``W`` and a norm for each sequence. A sequence without a candidate item is not changed, but followed
    by zeros where another sequence has a candidate item, so that the newest events stay aligned.

    Args:
        targets: of each sequence, the indices of the tokens whose sum is the candidate item, or none.
        dim: D.
        norm_name: of the events.
    """

    def __init__(self, targets: Sequence[tuple[int, ...]], dim: int, norm_name: OptionalNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(norm_name, dim) for _ in targets)
        self.meetings = nn.ModuleList(
            CandidateMeeting(indices, dim) if indices else nn.Identity() for indices in targets
        )
        self.some_meet = any(targets)

    def forward(self, sequences: Sequence[JaggedSequence], tokens_BND: Tensor) -> list[JaggedSequence]:
        """Maps sequences of (E_i, D) to the same with a further event per example, given tokens (B, N, D)."""
        met = []
        for sequence, normalise, meeting in zip(sequences, self.norms, self.meetings, strict=True):
            if isinstance(meeting, CandidateMeeting):
                sequence = meeting(sequence, tokens_BND)
            elif self.some_meet:
                sequence = sequence.append(torch.zeros_like(tokens_BND[:, :1]))
            met.append(sequence.with_values(normalise(sequence.values_ED)))
        return met


class MaskNet(nn.Module):
    """``MLP_lce(S * MLP_mask(S))``: filters sequences and merges them.

    ``S`` concatenates the widths of all sequences, as published. Where lengths differ, sequences are aligned at the
    newest event, and shorter sequences padded with zeros. ``MLP_mask`` has a hidden layer as wide as ``S``; ``MLP_lce``
    is linear.

    Args:
        sequences: the number of merged sequences.
        dim: D.
        activation: in the MLP of the mask.
        filters: whether there is a mask: ``MLP_lce(S)`` without.
    """

    def __init__(self, sequences: int, dim: int, activation: ActivationName, *, filters: bool) -> None:
        super().__init__()
        width = sequences * dim
        self.mask = mlp([width, width, width], activation) if filters else None
        self.compression = nn.Linear(width, dim)

    def forward(self, sequences: Sequence[JaggedSequence]) -> JaggedSequence:
        """Maps sequences of (E_i, D) to a sequence (E, D), as long as the longest sequence of each example."""
        merged = concat_widths(sequences)
        filtered_EW = merged.values_ED
        if self.mask is not None:
            filtered_EW = filtered_EW * self.mask(filtered_EW)
        # Back to the input's dtype under autocast, because layers add residuals to these events.
        return merged.with_values(self.compression(filtered_EW).to(merged.values_ED.dtype))


def concat_widths(sequences: Sequence[JaggedSequence]) -> JaggedSequence:
    """Concatenates the n-th newest events of all sequences to an event (W,); zeros where a sequence has fewer."""
    if len(sequences) == 1:
        return sequences[0]
    lengths_B = torch.stack([sequence.lengths for sequence in sequences]).amax(0)
    offsets = torch.cat([sequences[0].offsets[:1], lengths_B.cumsum(0)])
    example_E = torch.repeat_interleave(lengths_B)
    back_E = offsets[1:][example_E] - 1 - torch.arange(example_E.shape[0], device=offsets.device)
    columns = []
    for sequence in sequences:
        # Row 0 is a row of zeros prepended to the events, so event i is row i + 1.
        row_E = torch.where(back_E < sequence.lengths[example_E], sequence.offsets[1:][example_E] - back_E, 0)
        columns.append(nn.functional.pad(sequence.values_ED, (0, 0, 1, 0)).index_select(0, row_E))
    return JaggedSequence(torch.cat(columns, dim=1), offsets, max(sequence.max_length for sequence in sequences))


class PersonalisedFFN(nn.Module):
    """``PFFN(X_sum, S) = W S`` with ``W = X_sum W_p``, a matrix D x D for each example.

    In the paper's notation the K tokens are columns: ``X_sum`` is D x K and ``W_p`` is K x D, so that W has rank K at
    most. An event becomes ``X_sum (W_p s)``, a weighted sum of its example's summary tokens, and W is never computed:
    4 K D FLOPs an event instead of 2 D^2.

    Args:
        tokens: K.
        dim: D.
    """

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.weights = nn.Linear(dim, tokens, bias=False)

    def forward(self, sequence: JaggedSequence, summary_BKD: Tensor) -> Tensor:
        """Maps events (E, D) and summary tokens (B, K, D) to events (E, D)."""
        values_ED, count = sequence.values_ED, summary_BKD.shape[1]
        weight_EK = self.weights(values_ED).to(values_ED.dtype)
        index_EK = count * sequence.example_index().unsqueeze(1) + torch.arange(count, device=values_ED.device)
        # As bags, because indexing would copy an example's tokens for each of its events.
        return nn.functional.embedding_bag(
            index_EK, summary_BKD.flatten(0, 1).to(values_ED.dtype), mode="sum", per_sample_weights=weight_EK
        )


class SequenceArch(nn.Module):
    """``S' = MHA(PFFN(X_sum, S))``, self-attention with rotary positions (arXiv 2104.09864) and no causal mask.

    Args:
        dim: D.
        heads: of the attention.
        summary: K.
        queries: the most recent events that have a query, besides the CLS tokens; keys and values are of all events
            (arXiv 2510.26104). None for all.
        residual: of the events; None where there is none.
    """

    def __init__(self, dim: int, heads: int, summary: int, queries: int | None, residual: nn.Module | None) -> None:
        super().__init__()
        self.heads, self.summary, self.queries = heads, summary, queries
        self.pffn = PersonalisedFFN(summary, dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm = residual

    def forward(self, sequence: JaggedSequence, summary_BKD: Tensor) -> JaggedSequence:
        """Maps events (E, D), given summary tokens (B, K, D), to the events (Q, D) that are kept."""
        values_ED = self.pffn(sequence, summary_BKD)
        if self.norm is not None:
            values_ED = sequence.values_ED + values_ED
        position_E = sequence.positions()
        key_ED, value_ED = self.key_value(values_ED).chunk(2, dim=-1)
        key = sequence.with_values(rotate(key_ED, -position_E, self.heads))
        kept, position_Q = sequence.with_values(values_ED), position_E
        if self.queries is not None:
            event_Q, offsets = self._select_queries(sequence, position_E, self.queries)
            kept = JaggedSequence(values_ED.index_select(0, event_Q), offsets, self.queries + self.summary)
            position_Q = position_E[event_Q]
        query_QD = rotate(self.query(kept.values_ED), -position_Q, self.heads)
        mixed = jagged_attention(kept.with_values(query_QD), key, value_ED, self.heads, causal=False)
        mixed_QD = self.out(mixed.values_ED)
        return kept.with_values(mixed_QD if self.norm is None else self.norm(kept.values_ED + mixed_QD))

    def _select_queries(self, sequence: JaggedSequence, position_E: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """Selects the CLS tokens and the most recent events; returns their indices (Q,) and their offsets (B + 1,)."""
        lengths_B = sequence.lengths
        oldest_E = (lengths_B - self.summary)[sequence.example_index()]
        event_Q = ((position_E < queries) | (position_E >= oldest_E)).nonzero().squeeze(1)
        kept_B = lengths_B.clamp(max=queries + self.summary)
        return event_Q, torch.cat([sequence.offsets[:1], kept_B.cumsum(0)])
