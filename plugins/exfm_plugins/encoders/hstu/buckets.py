"""Dense computation over jagged sequences in buckets of examples of similar length.

Legend: B examples, E events of all examples, C width of an event, b examples of a bucket, t events of its longest,
q of its newest events that get a result, Q such events of all examples, V width of a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from exfm.components import JaggedSequence
from exfm.layers import group_sizes

_GROWTH = 1.4
"""Limit of the ratio of the longest to the shortest history of a bucket, which bounds the padding."""

Function = Callable[[Tensor, Tensor | None], Tensor]


def map_buckets(sequence: JaggedSequence, kept: JaggedSequence, function: Function) -> Tensor:
    """Applies a function to the examples of each bucket, padded to its longest.

    The newest event is the last of its row, and zeros come before the oldest one::

        lengths 3, 2    [[a0 a1 a2]
                         [ 0 b0 b1]]

    A captured graph (``torch.export``) cannot branch on lengths, so it pads all examples to the longest possible
    history.

    Args:
        sequence: events (E, C).
        kept: the events that get a result, the newest events of each example.
        function: maps a bucket (b, t, C), and the ages of its events (b, t) where the sequence has ages, to results
            (b, q, V) of its newest events, at least of those that are kept. The age of padding is 0.

    Returns:
        (Q, V), the results of the kept events.
    """
    buckets = _buckets(sequence)
    # The row of zeros after the events is the padding. A single gather for all buckets, because the backward pass of
    # each gather writes a tensor of all events.
    values = nn.functional.pad(sequence.values_ED, (0, 0, 0, 1))
    indices = [_event_indices(sequence, examples_b, t) for examples_b, t in buckets]
    sizes = [index.shape[0] for index in indices]
    rows = torch.split(values.index_select(0, torch.cat(indices)), sizes)
    ages: Sequence[Tensor | None] = [None] * len(sizes)
    if sequence.ages_E is not None:
        padded = nn.functional.pad(sequence.ages_E, (0, 1))
        ages = torch.split(padded.index_select(0, torch.cat(indices)), sizes)
    outputs, ends, total = [], [], 0
    for (examples_b, t), rows_C, ages_of_rows in zip(buckets, rows, ages, strict=True):
        shape = (examples_b.shape[0], t)
        ages_bt = None if ages_of_rows is None else ages_of_rows.view(shape)
        output_bqV = function(rows_C.view(*shape, values.shape[1]), ages_bt)
        b, q = output_bqV.shape[:2]
        outputs.append(output_bqV.flatten(0, 1))
        ends.append(total + q * torch.arange(1, b + 1, device=examples_b.device))
        total = total + b * q
    examples = torch.cat([examples_b for examples_b, _ in buckets])
    # The end of each example's outputs in the concatenated outputs of all buckets.
    end_B = torch.zeros_like(sequence.lengths).index_copy(0, examples, torch.cat(ends))
    row_Q = end_B[kept.example_index()] - 1 - kept.positions()
    return torch.cat(outputs).index_select(0, row_Q)


def _buckets(sequence: JaggedSequence) -> list[tuple[Tensor, int]]:
    """Lists the examples (b,) and the longest history of each bucket; examples without events are in none."""
    if torch.compiler.is_exporting():
        return [(torch.arange(sequence.batch_size, device=sequence.offsets.device), sequence.max_length)]
    lengths_B, order_B = sequence.lengths.sort(descending=True)
    count = int((lengths_B > 0).sum())
    if not count:
        return [(order_B[:0], 1)]  # an empty bucket, because torch.cat refuses an empty list
    sizes = group_sizes(lengths_B[:count], _GROWTH)
    longest = [int(lengths_b[0]) for lengths_b in torch.split(lengths_B[:count], sizes)]
    return list(zip(torch.split(order_B[:count], sizes), longest, strict=True))


def _event_indices(sequence: JaggedSequence, examples_b: Tensor, t: int) -> Tensor:
    """Returns the event at each position of a bucket, row by row; E for padding."""
    back_t = torch.arange(t, 0, -1, device=examples_b.device)
    event_bt = sequence.offsets[examples_b + 1].unsqueeze(1) - back_t
    exists_bt = event_bt >= sequence.offsets[examples_b].unsqueeze(1)
    return torch.where(exists_bt, event_bt, sequence.values_ED.shape[0]).flatten()
