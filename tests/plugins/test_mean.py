"""`mean` against a loop over examples, and the tests of every sequence encoder."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import exfm_plugins.encoders
from exfm.components import EncoderInputs
from exfm.testing import Examples, SequenceEncoderTests, random_examples
from exfm_plugins.encoders.mean.encoder import Mean
from tests.plugins.checks import gradient


def histories(lengths: list[int], dim: int) -> Examples:
    return random_examples(len(lengths), 2, dim, {"history": lengths})


def run(examples: Examples) -> Tensor:
    dim = examples.tokens_BND.shape[2]
    module = Mean(Mean.Config(), EncoderInputs("history", dim, 50, context=("user", "item"), targets=(1,)))
    return module(examples.sequences()["history"], examples.tokens_BND)


@given(lengths=st.lists(st.integers(0, 6), max_size=6), dim=st.integers(1, 5))
def test_is_the_mean_of_each_examples_own_events(lengths: list[int], dim: int) -> None:
    examples = histories(lengths, dim)
    expected = [
        torch.stack([sum(event[:, d], event.new_zeros(())) / max(len(event), 1) for d in range(dim)])
        for event in examples.events["history"]
    ]
    summary = run(examples)
    assert summary.shape == (len(lengths), 1, dim)
    if lengths:
        torch.testing.assert_close(summary.squeeze(1), torch.stack(expected), rtol=1e-9, atol=1e-12)


class TestMean(SequenceEncoderTests):
    component = Mean
    plugin = exfm_plugins.encoders


def test_an_empty_history_is_zeros_and_passes_no_gradient_on() -> None:
    examples = histories([0, 2], 3).requires_grad()
    events = examples.events["history"]
    summary = run(examples)
    assert not summary[0].any()
    summary.sum().backward()
    assert torch.equal(gradient(events[1]), torch.full_like(events[1], 0.5))
