"""Computes attention over jagged sequences, at a cost that grows with the number of events and not of padding.

Legend: B examples, E key events of all examples, Q query events, D = H * C width, H heads, C width of a head,
S examples with queries and keys, longest first, b examples of a bucket, q and k the most queries and keys in it,
R rows of all buckets, padding included, T longest history.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from exfm.interfaces.jagged import JaggedSequence
from exfm.layers.length_groups import group_sizes

# Within a bucket the longest example has less than GROWTH times the keys of the shortest. On the cases of
# benchmarks/jagged_attention.py the time is flat for growths from 1.15 to 1.6.
_GROWTH = 1.3

_WHOLE, _BLOCK = 1 << 23, 1 << 22
"""Limit of query-key pairs for a mask of a whole bucket, and the pairs of a block where a bucket has more."""

Padded = tuple[Tensor, Tensor, Tensor]


def jagged_attention(
    query: JaggedSequence, key: JaggedSequence, value_ED: Tensor, heads: int, *, causal: bool
) -> JaggedSequence:
    """Computes ``softmax(Q K^T / sqrt(C)) V`` within each example.

    Examples of similar length are computed together, so that there is little padding. On a GPU, torch's kernel for
    variable lengths processes the jagged tensors directly if it supports their dtype and width. A captured graph
    (``torch.export``) cannot depend on the lengths, so it pads every example to the longest history.

    Args:
        query: projected queries (Q, D). If ``causal``, an example's queries are the last of its events.
        key: projected keys (E, D).
        value_ED: projected values, with the keys' offsets.
        heads: H.
        causal: whether a query sees only the keys up to its event.

    Returns:
        (Q, D) with the query's offsets; zeros for an example without keys.

    Example::

        events = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=50)
        mixed = jagged_attention(events, events, events.values_ED, heads=2, causal=True)  # values (5, 16)
    """
    attend = _in_buckets
    if torch.compiler.is_exporting():
        attend = _padded_to_the_longest
    elif _varlen_takes(query.values_ED, key.values_ED, heads):
        attend = _varlen
    mixed_QD = attend(query, key, value_ED, heads, causal)
    return query.with_values(mixed_QD.to(query.values_ED.dtype))


@dataclass(frozen=True)
class _Rows:
    """Maps rows of buckets to events; each example is padded to the longest example of its bucket.

    Attributes:
        lengths: lengths of the examples (b,), by bucket.
        shortest: shortest length of each bucket.
        longest: longest length of each bucket.
        event_R: index of the event in each row; padding repeats an example's last event.
        start_S: index of the first row of each example.
    """

    lengths: tuple[Tensor, ...]
    shortest: list[int]
    longest: list[int]
    event_R: Tensor
    start_S: Tensor

    def padded(self, values_ED: Tensor) -> list[Tensor]:
        """Returns the events of each bucket, (b, k, D)."""
        shapes = [(len(lengths_b), longest) for lengths_b, longest in zip(self.lengths, self.longest, strict=True)]
        # A single gather for all buckets, because the backward pass of each gather writes all E events.
        buckets = torch.split(values_ED.index_select(0, self.event_R), [b * k for b, k in shapes])
        return [rows.view(*shape, rows.shape[1]) for rows, shape in zip(buckets, shapes, strict=True)]


def _in_buckets(query: JaggedSequence, key: JaggedSequence, value_ED: Tensor, heads: int, causal: bool) -> Tensor:
    order_S, sizes = _buckets(query.lengths, key.lengths)
    if not sizes:
        return torch.zeros_like(query.values_ED)
    # Self-attention over all events shares the offsets: its queries are in the rows of its keys.
    same_events = query.offsets is key.offsets
    keys = _rows(key, order_S, sizes)
    queries = keys if same_events else _rows(query, order_S, sizes)
    tensors = (queries.padded(query.values_ED), keys.padded(key.values_ED), keys.padded(value_ED))
    outputs = []
    for bucket, padded in enumerate(zip(*tensors, strict=True)):
        keys_b, k = keys.lengths[bucket], keys.longest[bucket]
        if causal and not same_events:
            outputs.append(_recent(padded, heads, queries.lengths[bucket], keys_b).flatten(0, 1))
            continue
        mask = _key_mask(keys_b, k) if not causal and keys.shortest[bucket] < k else None
        # Padding follows the events, so in the causal kernel no query of an event sees padding.
        outputs.append(_attention(padded, heads, mask, causal=causal).flatten(0, 1))
    # The queries of an example without keys select the row of zeros at the end.
    outputs.append(outputs[0].new_zeros(1, outputs[0].shape[1]))
    in_bucket_B = torch.zeros_like(query.lengths).index_fill(0, order_S, 1)
    start_B = torch.full_like(in_bucket_B, len(queries.event_R)).index_copy(0, order_S, queries.start_S)
    example_Q, position_Q = _positions(query)
    return torch.cat(outputs).index_select(0, start_B[example_Q] + position_Q * in_bucket_B[example_Q])


def _buckets(queries_B: Tensor, keys_B: Tensor) -> tuple[Tensor, list[int]]:
    """Returns the examples with queries and keys, most keys first, and the number of examples of each bucket."""
    order_B = keys_B.argsort(descending=True)
    order_S = order_B[(queries_B.minimum(keys_B) > 0)[order_B]]
    return order_S, group_sizes(keys_B[order_S], _GROWTH)


def _rows(sequence: JaggedSequence, order_S: Tensor, sizes: list[int]) -> _Rows:
    device = order_S.device
    lengths_S = sequence.lengths[order_S]
    lengths = torch.split(lengths_S, sizes)
    # A single synchronisation with a GPU, whatever the number of buckets.
    shortest, longest = torch.stack([torch.stack(lengths_b.aminmax()) for lengths_b in lengths], dim=1).tolist()
    longest_S = torch.tensor(longest, device=device).repeat_interleave(torch.tensor(sizes, device=device))
    ends_S = longest_S.cumsum(0)
    start_S = ends_S - longest_S
    # Computed on the CPU: with `output_size`, repeat_interleave does not synchronise.
    rows = sum(b * k for b, k in zip(sizes, longest, strict=True))
    example_R = torch.repeat_interleave(torch.arange(len(order_S), device=device), longest_S, output_size=rows)
    position_R = torch.arange(rows, device=device) - start_S[example_R]
    event_R = sequence.offsets[order_S][example_R] + position_R.minimum(lengths_S[example_R] - 1)
    return _Rows(lengths, shortest, longest, event_R, start_S)


def _padded_to_the_longest(
    query: JaggedSequence, key: JaggedSequence, value_ED: Tensor, heads: int, causal: bool
) -> Tensor:
    padded = (_dense(query), _dense(key), _dense(key.with_values(value_ED)))
    if causal:
        mask = _causal_mask(query.lengths, key.lengths, query.max_length, key.max_length)
    else:
        mask = _key_mask(key.lengths, key.max_length)
    mixed_BTD = _attention(padded, heads, mask, causal=False)
    example_Q, position_Q = _positions(query)
    mixed_QD = mixed_BTD.flatten(0, 1).index_select(0, example_Q * query.max_length + position_Q)
    # An example without keys has an empty mask, whose softmax is undefined.
    return torch.where((key.lengths > 0)[example_Q].unsqueeze(1), mixed_QD, 0)


def _dense(sequence: JaggedSequence) -> Tensor:
    """Returns events (B, T, D), padded with zeros."""
    position_T = torch.arange(sequence.max_length, device=sequence.offsets.device)
    event_BT = sequence.offsets[:-1].unsqueeze(1) + position_T
    # Padding selects the row of zeros that is appended after the events.
    event_BT = torch.where(position_T < sequence.lengths.unsqueeze(1), event_BT, sequence.values_ED.shape[0])
    values = nn.functional.pad(sequence.values_ED, (0, 0, 0, 1))
    return values.index_select(0, event_BT.flatten()).view(*event_BT.shape, values.shape[1])


def _positions(sequence: JaggedSequence) -> tuple[Tensor, Tensor]:
    """Returns the example of each event, and the event's position in it, oldest first."""
    example_E = sequence.example_index()
    return example_E, torch.arange(example_E.shape[0], device=example_E.device) - sequence.offsets[:-1][example_E]


def _key_mask(keys_b: Tensor, k: int) -> Tensor:
    """Returns the mask of keys that are not padding, (b, 1, 1, k)."""
    return (torch.arange(k, device=keys_b.device) < keys_b.unsqueeze(1))[:, None, None]


def _causal_mask(queries_b: Tensor, keys_b: Tensor, q: int, k: int) -> Tensor:
    """Returns the mask of keys that a query sees, (b, 1, q, k); a query that is not padding sees no padding."""
    position_bq = (keys_b - queries_b).unsqueeze(1) + torch.arange(q, device=keys_b.device)
    return (torch.arange(k, device=keys_b.device) <= position_bq.unsqueeze(2)).unsqueeze(1)


def _recent(padded: Padded, heads: int, queries_b: Tensor, keys_b: Tensor) -> Tensor:
    """Computes causal attention of each example's most recent events as queries, (b, q, D).

    It needs a mask of all query-key pairs, which the kernel saves for the backward pass. Large masks are created block
    by block and recomputed in the backward pass, so that memory grows with the events and not with their pairs.
    """
    b, q, k = *padded[0].shape[:2], padded[1].shape[1]
    if b * q * k <= _WHOLE:
        return _recent_block(*padded, queries_b, keys_b, heads)
    block = max(1, min(q, _BLOCK // k))
    size = max(1, _BLOCK // (block * k))
    slices = zip(*(torch.split(tensor, size) for tensor in (*padded, queries_b, keys_b)), strict=True)
    mixed = []
    for query, key, value, query_lengths, key_lengths in slices:
        outputs = []
        for number, query_block in enumerate(torch.split(query, block, dim=1)):
            # Fewer queries shift the causal mask to later positions: the block begins after the earlier blocks.
            arguments = (query_block, key, value, query_lengths - number * block, key_lengths, heads)
            # Attention here has no dropout, so there is no random state to preserve.
            outputs.append(checkpoint(_recent_block, *arguments, use_reentrant=False, preserve_rng_state=False))
        mixed.append(torch.cat(outputs, dim=1))
    return torch.cat(mixed)


def _recent_block(query: Tensor, key: Tensor, value: Tensor, queries_b: Tensor, keys_b: Tensor, heads: int) -> Tensor:
    mask = _causal_mask(queries_b, keys_b, query.shape[1], key.shape[1])
    return _attention((query, key, value), heads, mask, causal=False)


def _attention(padded: Padded, heads: int, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Computes SDPA of queries (b, q, D), keys (b, k, D) and values (b, k, D), and returns (b, q, D)."""
    query, key, value = (x.view(*x.shape[:2], heads, x.shape[2] // heads).transpose(1, 2) for x in padded)
    mixed_bHqC = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return mixed_bHqC.transpose(1, 2).flatten(2)


def _varlen_takes(query_QD: Tensor, key_ED: Tensor, heads: int) -> bool:
    """Tells whether torch's kernel for variable lengths (Flash Attention) supports the queries and keys."""
    if not query_QD.is_cuda or query_QD.dtype not in (torch.float16, torch.bfloat16):
        return False
    width, generation = query_QD.shape[1] // heads, torch.cuda.get_device_capability(query_QD.device)
    # Limits of Flash Attention 2: Ampere (8.0) or newer, heads of at most 256 columns, a multiple of 8.
    return min(len(query_QD), len(key_ED)) > 0 and width % 8 == 0 and width <= 256 and generation >= (8, 0)


def _varlen(query: JaggedSequence, key: JaggedSequence, value_ED: Tensor, heads: int, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # imported here, because the import takes a second

    query_QHC, key_EHC, value_EHC = (
        x.view(len(x), heads, x.shape[1] // heads) for x in (query.values_ED, key.values_ED, value_ED)
    )
    mixed_QHC = varlen_attn(
        query_QHC,
        key_EHC,
        value_EHC,
        query.offsets.int(),
        key.offsets.int(),
        query.max_length,
        key.max_length,
        # The kernel aligns its causal mask to the last query and the last key.
        window_size=(-1, 0) if causal else (-1, -1),
    )
    assert isinstance(mixed_QHC, Tensor)
    return mixed_QHC.flatten(1)
