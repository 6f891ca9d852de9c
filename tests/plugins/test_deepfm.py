"""`deepfm` against the published sums, written pair by pair, and the tests of every backbone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.deepfm.model import DeepFM
from tests.plugins.checks import Net


def inputs(tokens: int, dim: int) -> BackboneInputs:
    return BackboneInputs(tuple(f"f{i}" for i in range(tokens)), dim)


def build(hidden: list[int], tokens: int, dim: int) -> DeepFM:
    torch.manual_seed(0)
    return DeepFM(DeepFM.Config(hidden=tuple(hidden)), inputs(tokens, dim)).double()


def terms_by_the_paper(module: Net, example_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """First order, second order and the MLP's last hidden layer of one example."""
    count, dim = example_ND.shape
    a_ND = module.first_order.weight.reshape(count, dim)
    first = sum(a_ND[i] @ example_ND[i] for i in range(count))
    second = sum((example_ND[i] @ example_ND[j] for i in range(count) for j in range(i + 1, count)), 0 * first)
    x = torch.cat(list(example_ND))
    for linear in list(module.deep)[::2]:
        x = (linear.weight @ x + linear.bias).clamp(min=0)
    return first, second, x


class TestDeepFM(BackboneTests):
    component = DeepFM
    plugin = exfm_plugins.backbones
    configs = ({}, {"hidden": [6], "activation": "silu"})


shapes = given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 6),
    dim=st.integers(1, 5),
    hidden=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)


@shapes
def test_holds_the_published_terms(batch: int, tokens: int, dim: int, hidden: list[int]) -> None:
    module = build(hidden, tokens, dim)
    tokens_BND = torch.randn(batch, tokens, dim, dtype=torch.float64)
    representation = module(tokens_BND, {})
    assert representation.shape == (batch, dim + 1 + hidden[-1])
    for row, example_ND in zip(representation, tokens_BND, strict=True):
        first, second, deep = terms_by_the_paper(module, example_ND)
        torch.testing.assert_close(row[:dim].sum(), second, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(row[dim], first, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(row[dim + 1 :], deep, rtol=1e-9, atol=1e-9)


@shapes
def test_each_column_of_the_second_order_is_its_pairs(batch: int, tokens: int, dim: int, hidden: list[int]) -> None:
    tokens_BND = torch.randn(batch, tokens, dim, dtype=torch.float64)
    both_BDNN = torch.einsum("bid,bjd->bdij", tokens_BND, tokens_BND)
    expected_BD = both_BDNN.triu(1).sum((2, 3))
    actual_BD = build(hidden, tokens, dim)(tokens_BND, {})[:, :dim]
    torch.testing.assert_close(actual_BD, expected_BD, rtol=1e-9, atol=1e-9)


def test_a_linear_head_of_ones_is_the_papers_logit() -> None:
    module = build([7, 5], tokens=4, dim=3)
    tokens_BND, out_H = torch.randn(6, 4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    logit_B = module(tokens_BND, {}) @ torch.cat([torch.ones(3 + 1, dtype=torch.float64), out_H])
    for logit, example_ND in zip(logit_B, tokens_BND, strict=True):
        first, second, deep = terms_by_the_paper(module, example_ND)
        torch.testing.assert_close(logit, first + second + out_H @ deep, rtol=1e-9, atol=1e-9)


def test_flops_are_those_of_the_docstring() -> None:
    module = build([10, 4], tokens=5, dim=6).float()
    assert count_flops(lambda: module(torch.zeros(3, 5, 6), {})) == 3 * 2 * (5 * 6 + 5 * 6 * 10 + 10 * 4)


@pytest.mark.parametrize("wrong", [{"hidden": ()}, {"hidden": (0,)}, {"activation": "tanh"}, {"layers": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DeepFM.Config(**wrong)
