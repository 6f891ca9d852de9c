"""`dlrm` against the published equations, written as loops, and the tests of every backbone."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.testing import BackboneTests, random_examples
from exfm_plugins.backbones.dlrm.model import DLRM
from tests.plugins.checks import Net

ACTIVATIONS = {"relu": lambda x: x.clamp(min=0), "silu": lambda x: x / (1 + (-x).exp())}


def names(count: int) -> tuple[str, ...]:
    return ("user", "dense", "item", "place", "hour")[:count] + tuple(f"f{i}" for i in range(5, count))


def by_the_paper(module: Net, tokens_BND: Tensor, config: DLRM.Config, tokens: tuple[str, ...]) -> Tensor:
    """One example and pair by pair."""
    rows = []
    for example_ND in tokens_BND:
        dots = [example_ND[i] @ example_ND[j] for i in range(len(tokens)) for j in range(i + 1, len(tokens))]
        joined = [example_ND[i] for i, token in enumerate(tokens) if config.concat == "all" or token == "dense"]
        x = torch.cat([torch.stack(dots) if dots else tokens_BND.new_zeros(0), *joined])
        for linear in list(module.top)[::2]:
            x = ACTIVATIONS[config.activation](linear.weight @ x + linear.bias)
        rows.append(x)
    return torch.stack(rows)


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 7),
    dim=st.integers(1, 5),
    concat=st.sampled_from(["all", "dense"]),
    activation=st.sampled_from(["relu", "silu"]),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_equals_the_published_equations(
    batch: int, tokens: int, dim: int, concat: str, activation: str, hidden: list[int]
) -> None:
    config = DLRM.Config(hidden=tuple(hidden), concat=concat, activation=activation)
    inputs = BackboneInputs(names(tokens), dim)
    if tokens == 1 and concat == "dense":
        return
    torch.manual_seed(0)
    module = DLRM(config, inputs).double()
    tokens_BND = random_examples(batch, tokens, dim).tokens_BND
    expected = by_the_paper(module, tokens_BND, config, inputs.tokens)
    torch.testing.assert_close(module(tokens_BND, {}), expected, rtol=1e-9, atol=1e-9)


class TestDLRM(BackboneTests):
    component = DLRM
    plugin = exfm_plugins.backbones
    configs: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"hidden": [16, 8], "concat": "dense", "activation": "silu"})


class TestDLRMOfOneToken(TestDLRM):
    tokens = ("user",)
    configs = ({},)


def test_pairs_follow_the_model_and_stay_out_of_its_state() -> None:
    module = DLRM(DLRM.Config(), BackboneInputs(names(4), 8))
    assert {name for name, _ in module.named_buffers()} == {"pairs", "joined"}
    assert all(name.startswith("top.") for name in module.state_dict())
    assert module.to("meta").pairs.is_meta


def test_a_dense_token_alone_is_enough() -> None:
    module = DLRM(DLRM.Config(concat="dense"), BackboneInputs(("dense",), 4))
    assert module(torch.randn(2, 1, 4), {}).shape == (2, 64)


def test_nothing_for_the_top_mlp_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"concat='dense'.*'user'.*concat='all'"):
        DLRM(DLRM.Config(concat="dense"), BackboneInputs(("user",), 4))


@pytest.mark.parametrize("wrong", [{"hidden": ()}, {"hidden": (0,)}, {"concat": "some"}, {"layers": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DLRM.Config(**wrong)
