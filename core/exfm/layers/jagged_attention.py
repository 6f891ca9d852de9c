"""Attention over jagged sequences, at a cost that follows the events there are.

Legend: B examples, E key events of all examples, Q query events, D = H * C width, H heads, C width of a head,
b examples of a bucket, q and k the longest query and key sequence in it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from exfm.interfaces.jagged import JaggedSequence


def jagged_attention(
    query: JaggedSequence, key: JaggedSequence, value_ED: Tensor, heads: int, *, causal: bool
) -> JaggedSequence:
    """``softmax(Q K^T / sqrt(C)) V`` within each example.

    Examples of similar length are computed together, so that little is padded.

    Args:
        query: projected queries (Q, D). Where ``causal``, an example's queries are the last of its events.
        key: projected keys (E, D).
        value_ED: projected values, with the keys' offsets.
        heads: H.
        causal: whether a query sees only the keys up to its own event.

    Returns:
        (Q, D) with the query's offsets; zeros for an example without keys.
    """
    outputs, places = [], []
    for examples_b in _buckets(query, key):
        query_bqD, query_mask_bq = _padded(query.values_ED, query, examples_b)
        key_bkD, key_mask_bk = _padded(key.values_ED, key, examples_b)
        value_bkD, _ = _padded(value_ED, key, examples_b)
        mask_bqk = _mask(query_mask_bq, key_mask_bk, causal)
        parts = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query_bqD, key_bkD, value_bkD))
        output_bHqC = nn.functional.scaled_dot_product_attention(*parts, attn_mask=mask_bqk.unsqueeze(1))
        outputs.append(output_bHqC.transpose(1, 2).flatten(2)[query_mask_bq])
        places.append(_places(query, examples_b)[query_mask_bq])
    result_QD = torch.zeros_like(query.values_ED)
    if outputs:
        result_QD = result_QD.index_copy(0, torch.cat(places), torch.cat(outputs).to(result_QD.dtype))
    return JaggedSequence(result_QD, query.offsets, query.max_length)


def _buckets(query: JaggedSequence, key: JaggedSequence) -> Iterator[Tensor]:
    """Examples with queries and keys, in groups whose keys differ in length by less than a factor of two."""
    lengths_B = key.lengths
    level_B = torch.where((lengths_B > 0) & (query.lengths > 0), lengths_B.clamp(min=8).log2().floor().long(), -1)
    for level in level_B.unique().tolist():
        if level >= 0:
            yield (level_B == level).nonzero().squeeze(1)


def _places(sequence: JaggedSequence, examples_b: Tensor) -> Tensor:
    """The row of each event (b, t) of some examples; past an example's end, any row."""
    longest = int(sequence.lengths[examples_b].max())
    places_bt = sequence.offsets[examples_b].unsqueeze(1) + torch.arange(longest, device=examples_b.device)
    return places_bt.clamp(max=sequence.values_ED.shape[0] - 1)


def _padded(values_ED: Tensor, sequence: JaggedSequence, examples_b: Tensor) -> tuple[Tensor, Tensor]:
    """Events (b, t, D) of some examples, and which of them are real (b, t)."""
    places_bt = _places(sequence, examples_b)
    real_bt = torch.arange(places_bt.shape[1], device=places_bt.device) < sequence.lengths[examples_b].unsqueeze(1)
    return values_ED.index_select(0, places_bt.flatten()).view(*places_bt.shape, -1), real_bt


def _mask(query_bq: Tensor, key_bk: Tensor, causal: bool) -> Tensor:
    """Which keys a query sees, (b, q, k); a query that is padding sees all, so that its output is finite."""
    seen_bqk = key_bk.unsqueeze(1).expand(-1, query_bq.shape[1], -1)
    if causal:
        position_bq = key_bk.sum(1, keepdim=True) - query_bq.sum(1, keepdim=True) + torch.arange(query_bq.shape[1])
        seen_bqk = seen_bqk & (torch.arange(key_bk.shape[1]) <= position_bq.unsqueeze(2))
    return seen_bqk | ~query_bq.unsqueeze(2)
