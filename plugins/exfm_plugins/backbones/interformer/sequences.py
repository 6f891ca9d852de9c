"""What InterFormer does to events: the mask at the input, and the sequence arch of a layer.

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


class Meeting(nn.Module):
    """``Norm([e + W (e * t) || t])``: every event ``e`` meets its example's candidate item ``t``, which follows them.

    There is a ``W`` and a norm for each sequence. A sequence without a candidate item meets nothing; zeros follow it
    where another one has a candidate item, so that events of one time stay side by side.

    Args:
        targets: of each sequence, the places of the tokens whose sum is the candidate item, or none.
        dim: D.
        norm_name: of the events.
    """

    def __init__(self, targets: Sequence[tuple[int, ...]], dim: int, norm_name: OptionalNorm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_norm(norm_name, dim) for _ in targets)
        meetings = [CandidateMeeting(places, dim) if places else None for places in targets]
        self.meetings = nn.ModuleList(nn.Identity() if one is None else one for one in meetings)
        self.some_meet = any(targets)

    def forward(self, sequences: Sequence[JaggedSequence], tokens_BND: Tensor) -> list[JaggedSequence]:
        """Maps sequences of (E_i, D) to the same with an event more per example, given tokens (B, N, D)."""
        met = []
        for sequence, normalise, meeting in zip(sequences, self.norms, self.meetings, strict=True):
            if isinstance(meeting, CandidateMeeting):
                sequence = meeting(sequence, tokens_BND)
            elif self.some_meet:
                sequence = sequence.append(torch.zeros_like(tokens_BND[:, :1]))
            met.append(sequence.with_values(normalise(sequence.values_ED)))
        return met


class MaskNet(nn.Module):
    """``MLP_lce(S * MLP_mask(S))``: sequences are filtered and become one.

    ``S`` has all sequences side by side, as published, aligned at the newest event where their lengths differ; a
    shorter one is filled up with zeros. ``MLP_mask`` has one hidden layer, as wide as ``S``; ``MLP_lce`` is linear.

    Args:
        sequences: how many are merged.
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
        """Maps sequences of (E_i, D) to one of (E, D), as long as the longest of the example's."""
        merged = side_by_side(sequences)
        filtered_EW = merged.values_ED if self.mask is None else merged.values_ED * self.mask(merged.values_ED)
        # Under autocast the maps are in low precision; the events that layers add to are not.
        return merged.with_values(self.compression(filtered_EW).to(merged.values_ED.dtype))


def side_by_side(sequences: Sequence[JaggedSequence]) -> JaggedSequence:
    """The n-th newest events of all sequences as one event (W,), zeros for a sequence that has fewer than n."""
    if len(sequences) == 1:
        return sequences[0]
    lengths_B = torch.stack([sequence.lengths for sequence in sequences]).amax(0)
    offsets = torch.cat([sequences[0].offsets[:1], lengths_B.cumsum(0)])
    example_E = torch.repeat_interleave(lengths_B)
    back_E = offsets[1:][example_E] - 1 - torch.arange(example_E.shape[0], device=offsets.device)
    columns = []
    for sequence in sequences:
        # Row 0 is a row of zeros put before the events.
        row_E = torch.where(back_E < sequence.lengths[example_E], sequence.offsets[1:][example_E] - back_E, 0)
        columns.append(nn.functional.pad(sequence.values_ED, (0, 0, 1, 0)).index_select(0, row_E))
    return JaggedSequence(torch.cat(columns, dim=1), offsets, max(sequence.max_length for sequence in sequences))


class PersonalisedFFN(nn.Module):
    """``PFFN(X_sum, S) = W S`` with ``W = X_sum W_p``, a matrix D x D for each example.

    In the paper's notation the K tokens are columns: ``X_sum`` is D x K and ``W_p`` is K x D, so that W has rank K at
    most. An event becomes ``X_sum (W_p s)``, a weighted sum of its example's summary tokens, and W is never made:
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
        place_EK = count * sequence.example_index().unsqueeze(1) + torch.arange(count, device=values_ED.device)
        # As a bag, no copy of an example's tokens is made for each of its events.
        return nn.functional.embedding_bag(
            place_EK, summary_BKD.flatten(0, 1).to(values_ED.dtype), mode="sum", per_sample_weights=weight_EK
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
            place_Q, offsets = self._asking(sequence, position_E, self.queries)
            kept = JaggedSequence(values_ED.index_select(0, place_Q), offsets, self.queries + self.summary)
            position_Q = position_E[place_Q]
        query_QD = rotate(self.query(kept.values_ED), -position_Q, self.heads)
        mixed = jagged_attention(kept.with_values(query_QD), key, value_ED, self.heads, causal=False)
        mixed_QD = self.out(mixed.values_ED)
        return kept.with_values(mixed_QD if self.norm is None else self.norm(kept.values_ED + mixed_QD))

    def _asking(self, sequence: JaggedSequence, position_E: Tensor, queries: int) -> tuple[Tensor, Tensor]:
        """Where the CLS tokens and the most recent events are, and their offsets."""
        lengths_B = sequence.lengths
        oldest_E = (lengths_B - self.summary)[sequence.example_index()]
        place_Q = ((position_E < queries) | (position_E >= oldest_E)).nonzero().squeeze(1)
        kept_B = lengths_B.clamp(max=queries + self.summary)
        return place_Q, torch.cat([sequence.offsets[:1], kept_B.cumsum(0)])
