"""`dcn_v2` against the published equations, by example and expert, and the tests of every backbone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.dcn_v2.model import DCNV2
from tests.plugins.checks import Net


def g(x: Tensor, name: str | None) -> Tensor:
    return {"relu": lambda: x.clamp(min=0), "silu": lambda: x / (1 + (-x).exp())}[name]() if name else x


def inputs(tokens: int, dim: int) -> BackboneInputs:
    return BackboneInputs(tuple(f"f{i}" for i in range(tokens)), dim)


def build(config: DCNV2.Config, tokens: int, dim: int) -> DCNV2:
    torch.manual_seed(0)
    return DCNV2(config, inputs(tokens, dim)).double()


def crossed(layer: Net, x0: Tensor, x: Tensor, config: DCNV2.Config) -> Tensor:
    """Equations 1 to 5 for one example, the experts' matrices taken apart."""
    if not config.rank:
        return x0 * (layer.linear.weight @ x + layer.linear.bias) + x
    scores = layer.gate.weight @ x + layer.gate.bias if config.experts > 1 else None
    out = x
    for i in range(config.experts):
        columns = slice(i * config.rank, (i + 1) * config.rank)
        u, v, b = layer.up.weight[:, columns], layer.down.weight[columns].T, layer.up.bias
        inside = v.T @ x
        if config.low_rank_activation:
            inside = g(layer.core_KSS[i] @ g(inside, config.low_rank_activation), config.low_rank_activation)
        share = 1.0
        if scores is not None:
            power = scores.exp()
            share = power[i] / power.sum() if config.gate == "softmax" else power[i] / (1 + power[i])
        out = out + share * (x0 * (u @ inside + b))
    return out


def by_the_paper(module: Net, tokens_BND: Tensor, config: DCNV2.Config) -> Tensor:
    rows = []
    for example_ND in tokens_BND:
        x0 = torch.cat(list(example_ND))
        if config.input_norm == "layer_norm":
            centred = x0 - x0.mean()
            x0 = centred / (centred.square().mean() + 1e-5).sqrt() * module.norm.weight + module.norm.bias
        cross = x0
        for layer in module.layers:
            cross = crossed(layer, x0, cross, config)
        deep = cross if config.structure == "stacked" else x0
        for linear in list(module.deep or [])[::2]:
            deep = g(linear.weight @ deep + linear.bias, config.activation)
        if not config.hidden:
            rows.append(cross)
        else:
            rows.append(deep if config.structure == "stacked" else torch.cat([cross, deep]))
    return torch.stack(rows)


class TestDCNV2(BackboneTests):
    component = DCNV2
    plugin = exfm_plugins.backbones
    configs = (
        {},
        {"layers": 1, "structure": "parallel", "hidden": [6]},
        {"rank": 3, "hidden": [], "input_norm": "layer_norm"},
        {"rank": 2, "experts": 3, "low_rank_activation": "silu", "gate": "sigmoid"},
    )


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)),
    layers=st.integers(1, 3),
    structure=st.sampled_from(["stacked", "parallel"]),
    hidden=st.lists(st.integers(1, 6), max_size=2),
    rank=st.integers(0, 5),
    experts=st.integers(1, 3),
    gate=st.sampled_from(["softmax", "sigmoid"]),
    norm=st.sampled_from(["none", "layer_norm"]),
    low_rank_activation=st.sampled_from([None, "relu", "silu"]),
)
def test_equals_the_published_equations(
    shape: tuple[int, int, int],
    layers: int,
    structure: str,
    hidden: list[int],
    rank: int,
    experts: int,
    gate: str,
    norm: str,
    low_rank_activation: str | None,
) -> None:
    of_rank = {"experts": experts, "low_rank_activation": low_rank_activation} if rank else {}
    config = DCNV2.Config(
        layers=layers, structure=structure, hidden=tuple(hidden), rank=rank, gate=gate, input_norm=norm, **of_rank
    )
    batch, tokens, dim = shape
    module = build(config, tokens, dim)
    tokens_BND = torch.randn(batch, tokens, dim, dtype=torch.float64)
    actual = module(tokens_BND, {})
    torch.testing.assert_close(actual, by_the_paper(module, tokens_BND, config), rtol=1e-9, atol=1e-9)
    assert actual.shape == (batch, module.output_dim)


def test_layers_raise_the_degree_by_one() -> None:
    """Without biases, x_l of c * x_0 is a polynomial in c of degree l + 1: its higher differences vanish."""
    module = build(DCNV2.Config(layers=3, hidden=()), tokens=2, dim=3)
    layer: Net
    for layer in module.layers:
        nn.init.zeros_(layer.linear.bias)
    tokens_ND = torch.randn(2, 3, dtype=torch.float64)
    scales = torch.arange(8, dtype=torch.float64)[:, None, None]
    values = module(scales * tokens_ND, {})
    assert values.diff(n=4, dim=0).abs().min() > 1e-3
    torch.testing.assert_close(values.diff(n=5, dim=0), torch.zeros(3, 6, dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "of_a_layer"),
    [
        ({}, lambda w: 2 * w * w),
        ({"rank": 5}, lambda w: 4 * 5 * w),
        ({"rank": 5, "experts": 3}, lambda w: 4 * 3 * 5 * w + 2 * 3 * w),
        ({"rank": 5, "experts": 3, "low_rank_activation": "relu"}, lambda w: 4 * 3 * 5 * w + 2 * 3 * w + 2 * 3 * 5 * 5),
    ],
)
@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_flops_are_those_of_the_docstring(
    fields: dict[str, object], of_a_layer: Callable[[int], int], structure: str
) -> None:
    module = DCNV2(DCNV2.Config(layers=4, hidden=(10, 7), structure=structure, **fields), inputs(5, 6))
    expected = 4 * of_a_layer(30) + 2 * (30 * 10 + 10 * 7)
    assert count_flops(lambda: module(torch.zeros(3, 5, 6), {})) == 3 * expected


@pytest.mark.parametrize("wrong", [{"experts": 2}, {"low_rank_activation": "relu"}])
def test_a_full_matrix_has_no_experts(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"experts: \d.*low_rank_activation: .*rank is 0.*give a rank"):
        DCNV2.Config(**wrong)


@pytest.mark.parametrize("wrong", [{"hidden": (0,)}, {"structure": "both"}, {"rank": -1}, {"gate": "top"}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DCNV2.Config(**wrong)
