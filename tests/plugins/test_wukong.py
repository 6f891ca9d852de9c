"""`wukong` against the published equations, written one example at a time, and what every backbone must hold."""

from __future__ import annotations

import pytest
import torch
from checks import check_backbone, check_offers, random_backbone_case
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.wukong
from exfm import BackboneInputs
from exfm_plugins.wukong.blocks import WukongLayer
from exfm_plugins.wukong.model import Wukong


def norm(x: Tensor, of: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * of.weight + of.bias


def perceptron(x: Tensor, of: nn.Sequential, *, activate_last: bool) -> Tensor:
    linears = [layer for layer in of if isinstance(layer, nn.Linear)]
    for place, linear in enumerate(linears):
        x = linear.weight @ x + linear.bias
        if activate_last or place < len(linears) - 1:
            x = x.clamp(min=0)
    return x


def layer_by_the_paper(x_ND: Tensor, layer: WukongLayer, config: Wukong.Config) -> Tensor:
    """Sections 3.3 to 3.6 for one example."""
    n, d = x_ND.shape
    first, w_lcb, w_residual = layer.maps.weight_RN.split(layer.maps.rows)
    if config.projection == "static":
        y_NK = first.T
    else:
        y_NK = perceptron((first @ x_ND).flatten(), layer.projection.mlp, activate_last=False).reshape(n, config.k)
    fm_NK = (x_ND @ x_ND.T) @ y_NK
    fmb = perceptron(norm(fm_NK.flatten(), layer.fm_norm), layer.fmb, activate_last=False)
    fmb_FD = fmb.reshape(config.num_fmb_tokens, d)
    residual = w_residual @ x_ND if n != config.num_fmb_tokens + config.num_lcb_tokens else x_ND
    return norm(torch.cat([fmb_FD, w_lcb @ x_ND]) + residual, layer.norm)


def by_the_paper(module: Wukong, tokens_BND: Tensor, config: Wukong.Config) -> Tensor:
    rows = []
    for x_ND in tokens_BND:
        for layer in module.layers:
            x_ND = layer_by_the_paper(x_ND, layer, config)
        rows.append(perceptron(x_ND.flatten(), module.head, activate_last=True))
    return torch.stack(rows)


def build(config: Wukong.Config, tokens: int, dim: int) -> Wukong:
    module = Wukong(config, BackboneInputs(tuple(f"f{i}" for i in range(tokens)), dim)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)  # layer norms' gains and shifts must count in the comparison too
    return module


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 9),
    dim=st.integers(1, 6),
    layers=st.integers(1, 3),
    fmb=st.integers(1, 4),
    lcb=st.integers(1, 4),
    k=st.integers(1, 5),
    projection=st.sampled_from(["static", "input_dependent"]),
    hidden=st.lists(st.integers(1, 5), max_size=2),
)
def test_equals_the_published_equations(
    batch: int, tokens: int, dim: int, layers: int, fmb: int, lcb: int, k: int, projection: str, hidden: list[int]
) -> None:
    config = Wukong.Config(
        layers=layers,
        num_fmb_tokens=fmb,
        num_lcb_tokens=lcb,
        k=k,
        projection=projection,
        projection_tokens=2,
        projection_hidden=tuple(hidden),
        fmb_hidden=tuple(hidden),
        head_hidden=(5, 3),
    )
    torch.manual_seed(0)
    module = build(config, tokens, dim)
    tokens_BND = random_backbone_case(batch, tokens, dim).tokens_BND
    expected = by_the_paper(module, tokens_BND, config)
    torch.testing.assert_close(module(tokens_BND, {}), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("projection", ["static", "input_dependent"])
@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_holds_what_a_backbone_must(tokens: int, projection: str) -> None:
    config = Wukong.Config(num_fmb_tokens=5, num_lcb_tokens=3, projection=projection, activation="silu")
    names = tuple(f"f{i}" for i in range(tokens))
    check_backbone(lambda: Wukong(config, BackboneInputs(names, 4)).double(), tokens, 4)


def test_only_a_change_of_the_token_count_needs_a_map_for_the_residual() -> None:
    same = build(Wukong.Config(num_fmb_tokens=5, num_lcb_tokens=3, k=4, layers=2), tokens=8, dim=4)
    assert [layer.maps.rows for layer in same.layers] == [[4, 3, 0], [4, 3, 0]]
    fewer = build(Wukong.Config(num_fmb_tokens=5, num_lcb_tokens=3, k=4, layers=2), tokens=20, dim=4)
    assert [layer.maps.rows for layer in fewer.layers] == [[4, 3, 8], [4, 3, 0]]


def test_a_static_projection_is_shared_and_an_input_dependent_one_is_not() -> None:
    """With a static Y the machine is quadratic in X: doubling X quadruples FM(X), whatever X is."""
    for projection, quadratic in (("static", True), ("input_dependent", False)):
        torch.manual_seed(0)
        config = Wukong.Config(layers=1, projection=projection, fmb_hidden=())
        layer = build(config, tokens=6, dim=4).layers[0]
        seen: list[Tensor] = []
        layer.fm_norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        x = random_backbone_case(3, 6, 4).tokens_BND
        layer(x)
        layer(2 * x)
        assert torch.allclose(seen[1], 4 * seen[0]) is quadratic


def test_plugin_offers_it() -> None:
    check_offers(exfm_plugins.wukong, Wukong)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"k": 0}, {"projection": "dynamic"}, {"head_hidden": ()}, {"n_f": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Wukong.Config(**wrong)
