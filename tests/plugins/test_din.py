"""`din` against the published equations, written event by event, and the tests of every sequence encoder."""

from __future__ import annotations

from math import floor, log2
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.encoders
from exfm.components import EncoderInputs, JaggedSequence
from exfm.testing import Examples, SequenceEncoderTests, random_examples
from exfm_plugins.encoders.din.encoder import DIN
from tests.plugins.checks import Net, gradient

CONTEXT = ("user", "item", "genre", "hour")


def activate(x: Tensor, module: Net) -> Tensor:
    if isinstance(module, nn.PReLU):
        return torch.where(x > 0, x, module.weight * x)
    return x.clamp(min=0) if isinstance(module, nn.ReLU) else x / (1 + (-x).exp())


def weight_by_the_paper(event_D: Tensor, target_D: Tensor, position: int, module: Net, buckets: int) -> Tensor:
    """The activation unit: an MLP on event, target, their difference and their product."""
    x = module.first.weight @ torch.cat([event_D, target_D, event_D - target_D, event_D * target_D])
    x = x + module.first.bias
    if buckets:
        x = x + module.position_bias.weight[min(floor(log2(1 + position)), buckets - 1)]
    for layer in module.later_layers:
        x = layer.weight @ x + layer.bias if isinstance(layer, nn.Linear) else activate(x, layer)
    return x


def by_the_paper(module: Net, examples: Examples, config: DIN.Config, targets: tuple[int, ...]) -> Tensor:
    rows = []
    for events_TD, context_ND in zip(examples.events["history"], examples.tokens_BND, strict=True):
        target_D = sum(context_ND[position] for position in targets) if targets else module.query_D
        newest = len(events_TD) - 1
        scores = [
            weight_by_the_paper(event_D, target_D, newest - position, module, config.position_buckets)
            for position, event_D in enumerate(events_TD)
        ]
        if not scores:
            rows.append(context_ND.new_zeros(context_ND.shape[1]))
            continue
        weights_T = torch.cat(scores)
        if config.normalise == "softmax":
            weights_T = weights_T.softmax(0)
        rows.append(weights_T @ events_TD)
    return torch.stack(rows).unsqueeze(1)


def build(config: DIN.Config, dim: int, targets: tuple[int, ...] = (1,), max_length: int = 50) -> DIN:
    module = DIN(config, EncoderInputs("history", dim, max_length, CONTEXT, targets)).double()
    if module.position_bias is not None:
        nn.init.normal_(module.position_bias.weight)
    return module


def histories(lengths: list[int], dim: int) -> Examples:
    return random_examples(len(lengths), len(CONTEXT), dim, {"history": lengths})


def run(module: Net, examples: Examples) -> Tensor:
    return module(examples.sequences()["history"], examples.tokens_BND)


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    dim=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    activation=st.sampled_from(["silu", "relu", "prelu"]),
    normalise=st.sampled_from(["none", "softmax"]),
    buckets=st.integers(0, 5),
    targets=st.sampled_from([(), (1,), (1, 2)]),
)
def test_equals_the_published_equations_and_their_gradients(
    lengths: list[int],
    dim: int,
    hidden: list[int],
    activation: str,
    normalise: str,
    buckets: int,
    targets: tuple[int, ...],
) -> None:
    config = DIN.Config(hidden=tuple(hidden), activation=activation, normalise=normalise, position_buckets=buckets)
    torch.manual_seed(0)
    module = build(config, dim, targets)
    examples = histories(lengths, dim).requires_grad()
    leaves = [examples.tokens_BND, *examples.events["history"], *module.parameters()]
    actual = run(module, examples)
    expected = by_the_paper(module, examples, config, targets)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    if sum(lengths):
        slope = torch.randn(actual.shape, generator=torch.Generator().manual_seed(3), dtype=actual.dtype)
        first = torch.autograd.grad(actual, leaves, slope, allow_unused=True, materialize_grads=True)
        second = torch.autograd.grad(expected, leaves, slope, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


class TestDIN(SequenceEncoderTests):
    component = DIN
    plugin = exfm_plugins.encoders
    configs: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"hidden": [6, 5], "activation": "prelu", "position_buckets": 0},
        {"normalise": "softmax", "target": ["item", "user"]},
    )


class TestDINWithoutCandidate(TestDIN):
    targets = ()
    configs = ({}, {"normalise": "softmax"})


def test_softmax_is_stable_however_large_the_scores() -> None:
    module = build(DIN.Config(normalise="softmax"), 3)
    examples = histories([4, 0, 1], 3).requires_grad()
    events = examples.events["history"]
    with torch.no_grad():
        last: Net = module.later_layers[-1]
        last.weight.mul_(1e6)
        last.bias.fill_(1e6)
    summary = run(module, examples)
    summary.sum().backward()
    assert summary.isfinite().all() and gradient(events[0]).isfinite().all()
    torch.testing.assert_close(summary[2, 0], events[2][0])


def test_named_targets_replace_those_that_share_a_table() -> None:
    examples = histories([4, 2], 3)
    torch.manual_seed(0)
    named = build(DIN.Config(target=("genre", "user")), 3, targets=(1,))
    torch.manual_seed(0)
    placed = build(DIN.Config(), 3, targets=(2, 0))
    assert torch.equal(run(named, examples), run(placed, examples))


def test_only_the_target_tokens_of_the_context_matter() -> None:
    module, examples = build(DIN.Config(), 3), histories([4, 2], 3)
    expected = run(module, examples)
    examples.tokens_BND[:, [0, 2, 3]] += 1
    assert torch.equal(run(module, examples), expected)
    examples.tokens_BND[:, 1] += 1
    assert not torch.allclose(run(module, examples), expected)


def test_an_unknown_target_is_an_error_that_names_the_nearest_token() -> None:
    with pytest.raises(ValueError, match=r"'itme'.*'history'.* Did you mean 'item'\? .*genre, hour, item, user"):
        build(DIN.Config(target=("itme",)), 3)


@pytest.mark.parametrize("wrong", [{"hidden": ()}, {"activation": "dice"}, {"position_buckets": -1}, {"heads": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DIN.Config(**wrong)


@pytest.mark.parametrize("normalise", ["none", "softmax"])
def test_gradients_are_derivatives_for_no_event_one_and_many(normalise: str) -> None:
    torch.manual_seed(0)
    encoder = DIN(
        DIN.Config(normalise=normalise, activation="silu"), EncoderInputs("history", 4, 5, ("user", "item"), (1,))
    )
    encoder = encoder.double()
    values_ED = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    context_BND = torch.randn(4, 2, 4, dtype=torch.float64, requires_grad=True)
    offsets = torch.tensor([0, 1, 1, 4, 5])

    def encode(values_ED: Tensor, context_BND: Tensor) -> Tensor:
        summary_B1D: Tensor = encoder(JaggedSequence(values_ED, offsets, 5), context_BND)
        return summary_B1D

    assert torch.autograd.gradcheck(encode, (values_ED, context_BND))
