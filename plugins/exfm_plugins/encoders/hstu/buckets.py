"""Dense computation over jagged sequences, examples of similar length together.

Legend: B examples, E events of all examples, C width of an event, b examples of a bucket, t events of its longest,
q of its newest events that get a result, Q such events of all examples, V width of a result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from exfm.components import JaggedSequence
from exfm.layers import group_sizes

# Within a bucket the longest example has less than GROWTH times the events of the shortest.
_GROWTH = 1.4


Function = Callable[[Tensor, Tensor | None], Tensor]


def in_buckets(sequence: JaggedSequence, kept: JaggedSequence, function: Function) -> Tensor:
    """Applies a function to the examples of each bucket, padded to its longest.

    The newest event is the last of its row, and zeros come before the oldest one::

        lengths 3, 2    [[a0 a1 a2]
                         [ 0 b0 b1]]

    A captured graph (``torch.export``) cannot look at the lengths: there all examples are padded to the longest
    history there may be.

    Args:
        sequence: events (E, C).
        kept: the events that get a result, the newest ones of each example.
        function: maps a bucket (b, t, C), and the ages of its events (b, t) where the sequence has ages, to results
            (b, q, V) of its newest events, at least of those that are kept. The age of padding is 0.

    Returns:
        (Q, V), the results of the kept events.
    """
    buckets = _buckets(sequence)
    # The row of zeros behind the events is the padding. One gather serves all buckets, as the backward pass of each
    # gather writes all events.
    values = nn.functional.pad(sequence.values_ED, (0, 0, 0, 1))
    places = [_places(sequence, examples_b, t) for examples_b, t in buckets]
    sizes = [indices.shape[0] for indices in places]
    rows = torch.split(values.index_select(0, torch.cat(places)), sizes)
    ages: Sequence[Tensor | None] = [None] * len(sizes)
    if sequence.ages_E is not None:
        padded = nn.functional.pad(sequence.ages_E, (0, 1))
        ages = torch.split(padded.index_select(0, torch.cat(places)), sizes)
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
    end_B = torch.zeros_like(sequence.lengths).index_copy(0, examples, torch.cat(ends))
    row_Q = end_B[kept.example_index()] - 1 - kept.positions()
    return torch.cat(outputs).index_select(0, row_Q)


def _buckets(sequence: JaggedSequence) -> list[tuple[Tensor, int]]:
    """The examples with events (b,), bucket by bucket, and the longest history of each bucket."""
    if torch.compiler.is_exporting():
        return [(torch.arange(sequence.batch_size, device=sequence.offsets.device), sequence.max_length)]
    lengths_B, order_B = sequence.lengths.sort(descending=True)
    count = int((lengths_B > 0).sum())
    if not count:
        return [(order_B[:0], 1)]
    sizes = group_sizes(lengths_B[:count], _GROWTH)
    longest = [int(lengths_b[0]) for lengths_b in torch.split(lengths_B[:count], sizes)]
    return list(zip(torch.split(order_B[:count], sizes), longest, strict=True))


def _places(sequence: JaggedSequence, examples_b: Tensor, t: int) -> Tensor:
    """The event in each place of a bucket, row by row; E where there is none."""
    back_t = torch.arange(t, 0, -1, device=examples_b.device)
    place_bt = sequence.offsets[examples_b + 1].unsqueeze(1) - back_t
    there_bt = place_bt >= sequence.offsets[examples_b].unsqueeze(1)
    return torch.where(there_bt, place_bt, sequence.values_ED.shape[0]).flatten()
