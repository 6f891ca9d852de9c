"""JaggedSequence selects and adds events as Python lists do."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exfm.components import JaggedSequence

LENGTHS = st.lists(st.integers(0, 6), max_size=6)


def build(lengths: list[int], longest: int = 6) -> tuple[JaggedSequence, list[list[list[float]]]]:
    values_ED = torch.arange(2.0 * sum(lengths)).view(-1, 2).double() + 1
    ages_E = 1_000 - torch.arange(sum(lengths))
    sequence = JaggedSequence(values_ED, torch.tensor([0, *lengths]).cumsum(0), longest, ages_E)
    return sequence, as_lists(sequence)


def as_lists(sequence: JaggedSequence) -> list[list[list[float]]]:
    """Splits the values into lists by example, and checks the ends of the offsets."""
    rows, offsets = sequence.values_ED.tolist(), sequence.offsets.tolist()
    assert offsets[0] == 0 and offsets[-1] == len(rows)
    return [rows[start:end] for start, end in pairwise(offsets)]


def ages(sequence: JaggedSequence) -> list[list[int]]:
    assert sequence.ages_E is not None and sequence.ages_E.dtype == torch.int64
    return [ages_T.tolist() for ages_T in sequence.ages_E.split(sequence.lengths.tolist())]


@given(lengths=LENGTHS, count=st.integers(0, 3))
def test_ages_stay_with_their_events(lengths: list[int], count: int) -> None:
    """Appended events have the example's time, and prepended events are as old as the oldest event."""
    sequence, _ = build(lengths)
    before, added = ages(sequence), tokens(len(lengths), count)
    assert ages(sequence.append(added)) == [example + [0] * count for example in before]
    assert ages(sequence.prepend(added)) == [(example or [0])[:1] * count + example for example in before]
    assert ages(sequence.recent(count)) == [example[max(len(example) - count, 0) :] for example in before]
    assert ages(sequence.with_values(sequence.values_ED * 2)) == before
    assert ages(sequence.slice(0, len(lengths))) == before
    assert [ages(sequence.slice(index, index + 1))[0] for index in range(len(lengths))] == before
    without = JaggedSequence(sequence.values_ED, sequence.offsets, 6)
    assert without.append(added).prepend(added).recent(count).slice(0, len(lengths)).ages_E is None


def tokens(batch: int, count: int) -> Tensor:
    return -1 - torch.arange(2.0 * batch * count).view(batch, count, 2).double()


@given(lengths=LENGTHS, count=st.integers(0, 8))
def test_recent_and_newest(lengths: list[int], count: int) -> None:
    sequence, events = build(lengths)
    recent = sequence.recent(count)
    assert as_lists(recent) == [example[max(len(example) - count, 0) :] for example in events]
    assert recent.max_length == min(count, 6)
    expected = [(example[::-1] + [[0.0, 0.0]] * count)[:count] for example in events]
    assert sequence.newest(count).tolist() == expected
    assert sequence.newest(count).shape == (len(lengths), count, 2)


@given(lengths=LENGTHS, count=st.integers(0, 3))
def test_prepend_and_append(lengths: list[int], count: int) -> None:
    sequence, events = build(lengths)
    added = tokens(len(lengths), count)
    before, after = sequence.prepend(added), sequence.append(added)
    assert as_lists(before) == [new + old for old, new in zip(events, added.tolist(), strict=True)]
    assert as_lists(after) == [old + new for old, new in zip(events, added.tolist(), strict=True)]
    assert before.max_length == after.max_length == 6 + count


@given(lengths=LENGTHS, count=st.integers(0, 4))
def test_gradients_go_where_the_values_came_from(lengths: list[int], count: int) -> None:
    sequence, _ = build(lengths)
    leaf = sequence.values_ED.requires_grad_()
    added = tokens(len(lengths), 2).requires_grad_()
    outputs = torch.cat([sequence.append(added).recent(count).values_ED.flatten(), sequence.newest(count).flatten()])
    by_leaf, by_added = torch.autograd.grad(outputs.sum(), (leaf, added))
    for position, row in zip(sequence.positions().tolist(), by_leaf.tolist(), strict=True):
        assert row == [float((position + 2 < count) + (position < count))] * 2
    assert by_added.tolist() == [[[float(count > 1)] * 2, [float(count > 0)] * 2]] * len(lengths)


@given(lengths=LENGTHS)
def test_with_values_keeps_the_events(lengths: list[int]) -> None:
    sequence, _ = build(lengths)
    positions = sequence.with_values(sequence.positions().unsqueeze(1))
    assert as_lists(positions) == [[[position] for position in reversed(range(length))] for length in lengths]
    assert positions.max_length == sequence.max_length
