"""JaggedSequence's helpers against a loop over examples."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import exfm


@given(lengths=st.lists(st.integers(0, 5), max_size=8))
def test_helpers_equal_the_loop(lengths: list[int]) -> None:
    offsets = torch.tensor([sum(lengths[:index]) for index in range(len(lengths) + 1)])
    sequence = exfm.components.JaggedSequence(torch.randn(sum(lengths), 3), offsets, max_length=5)
    assert sequence.batch_size == len(lengths)
    assert sequence.lengths.tolist() == lengths
    assert sequence.example_index().tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
    assert sequence.positions().tolist() == [length - 1 - index for length in lengths for index in range(length)]


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=8), data=st.data())
def test_a_slice_has_the_events_of_its_examples(lengths: list[int], data: st.DataObject) -> None:
    offsets = torch.tensor([sum(lengths[:index]) for index in range(len(lengths) + 1)])
    sequence = exfm.components.JaggedSequence(torch.randn(sum(lengths), 3), offsets, max_length=5)
    start = data.draw(st.integers(0, len(lengths)))
    stop = data.draw(st.integers(start, len(lengths)))
    cut = sequence.slice(start, stop)
    assert cut.lengths.tolist() == lengths[start:stop]
    assert cut.max_length == 5
    for index, example in enumerate(range(start, stop)):
        events = cut.values_ED[cut.offsets[index] : cut.offsets[index + 1]]
        assert torch.equal(events, sequence.values_ED[offsets[example] : offsets[example + 1]])
