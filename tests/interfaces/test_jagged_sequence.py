"""JaggedSequence's helpers against a loop over examples."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

import exfm


@given(lengths=st.lists(st.integers(0, 5), max_size=8))
def test_helpers_equal_the_loop(lengths: list[int]) -> None:
    offsets = torch.tensor([sum(lengths[:index]) for index in range(len(lengths) + 1)])
    sequence = exfm.JaggedSequence(torch.randn(sum(lengths), 3), offsets, max_length=5)
    assert sequence.batch_size == len(lengths)
    assert sequence.lengths.tolist() == lengths
    assert sequence.example_index().tolist() == [i for i, length in enumerate(lengths) for _ in range(length)]
    assert sequence.positions().tolist() == [length - 1 - place for length in lengths for place in range(length)]
