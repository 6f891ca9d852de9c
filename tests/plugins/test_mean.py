"""`mean` against a loop over examples, and what every sequence encoder must hold."""

from __future__ import annotations

import torch
from checks import check_encoder, check_offers, random_encoder_case
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm_plugins.mean
from exfm import EncoderInputs
from exfm_plugins.mean.encoder import Mean


def build(dim: int) -> Mean:
    return Mean(Mean.Config(), EncoderInputs("history", dim, 50, context=("user", "item"), targets=(1,)))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 6), max_size=6), dim=st.integers(1, 5))
def test_is_the_mean_of_each_examples_own_events(lengths: list[int], dim: int) -> None:
    case = random_encoder_case(lengths, 2, dim)
    expected = [
        torch.stack([sum(event[:, d]) / len(event) if len(event) else event.new_zeros(()) for d in range(dim)])
        for event in case.events
    ]
    summary = build(dim)(case.sequence(), case.context_BND)
    assert summary.shape == (len(lengths), 1, dim)
    if lengths:
        torch.testing.assert_close(summary.squeeze(1), torch.stack(expected), rtol=1e-9, atol=1e-12)


def test_holds_what_an_encoder_must() -> None:
    check_encoder(lambda: build(4).double(), context=2, dim=4)


def test_an_empty_history_is_zeros_and_passes_no_gradient_on() -> None:
    case = random_encoder_case([0, 2], 2, 3)
    case.events[1].requires_grad_()
    summary = build(3)(case.sequence(), case.context_BND)
    assert not summary[0].any()
    summary.sum().backward()
    assert torch.equal(case.events[1].grad, torch.full_like(case.events[1], 0.5))


def test_plugin_offers_it() -> None:
    check_offers(exfm_plugins.mean, Mean)
