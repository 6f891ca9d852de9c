"""`mlp` against a loop over examples and layers, and the tests of every backbone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.mlp.model import MLP

ACTIVATIONS = {"relu": lambda x: x.clamp(min=0), "silu": lambda x: x / (1 + (-x).exp())}


def inputs(tokens: int, dim: int) -> BackboneInputs:
    return BackboneInputs(tuple(f"f{i}" for i in range(tokens)), dim)


class TestMLP(BackboneTests):
    component = MLP
    plugin = exfm_plugins.backbones
    configs = ({}, {"hidden": [6], "activation": "gelu"})


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 5),
    dim=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
)
def test_equals_a_loop(batch: int, tokens: int, dim: int, hidden: list[int], activation: str) -> None:
    torch.manual_seed(0)
    module = MLP(MLP.Config(hidden=tuple(hidden), activation=activation), inputs(tokens, dim)).double()
    tokens_BND = torch.randn(batch, tokens, dim, dtype=torch.float64)
    weights = [parameter for _, parameter in sorted(module.named_parameters()) if parameter.dim() == 2]
    biases = [parameter for _, parameter in sorted(module.named_parameters()) if parameter.dim() == 1]
    rows = []
    for example_ND in tokens_BND:
        x = torch.cat(list(example_ND))
        for weight, bias in zip(weights, biases, strict=True):
            x = ACTIVATIONS[activation](weight @ x + bias)
        rows.append(x)
    torch.testing.assert_close(module(tokens_BND, {}), torch.stack(rows), rtol=1e-9, atol=1e-9)


def test_flops_are_those_of_the_docstring() -> None:
    module = MLP(MLP.Config(hidden=(10, 4)), inputs(5, 6))
    assert count_flops(lambda: module(torch.zeros(3, 5, 6), {})) == 3 * 2 * (5 * 6 * 10 + 10 * 4)


@pytest.mark.parametrize("wrong", [{"hidden": ()}, {"hidden": (0,)}, {"activation": "tanh"}, {"layers": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MLP.Config(**wrong)
