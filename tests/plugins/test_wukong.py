"""`wukong` against the published equations, written example by example, and the tests of every backbone."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.wukong.config import WukongConfig
from exfm_plugins.backbones.wukong.model import Wukong
from tests.plugins.checks import Net


class TestWukong(BackboneTests):
    component = Wukong
    plugin = exfm_plugins.backbones
    configs = (
        {"num_fmb_tokens": 3, "num_lcb_tokens": 1},
        {"layers": 3, "cross_layer_attention": True, "norm": "rms_norm", "bias": "last"},
        {
            "projection": "input_dependent",
            "activation": "silu",
            "head_hidden": [16, 8],
            "head_input": "all",
            "input_norm": "layer_norm",
        },
    )


def norm(x: Tensor, submodule: Net, config: WukongConfig) -> Tensor:
    """Of the last axis."""
    if config.norm == "rms_norm":
        return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * submodule.weight + submodule.bias


def affine(x: Tensor, linear: Net, biased: bool) -> Tensor:
    return linear.weight @ x + (linear.bias if biased else 0)


def perceptron(x: Tensor, submodule: Net, biased: bool) -> Tensor:
    """ReLU between the layers."""
    linears = [layer for layer in submodule if isinstance(layer, nn.Linear)]
    for linear in linears[:-1]:
        x = affine(x, linear, biased).clamp(min=0)
    return affine(x, linears[-1], biased)


def attention(x_MD: Tensor, others_SD: Tensor, submodule: Net, heads: int, biased: bool) -> Tensor:
    """One query and head by head."""
    d = x_MD.shape[1]
    width = d // heads
    rows = []
    for x in x_MD:
        query, mixed = affine(x, submodule.query, biased), []
        keys_values = [affine(other, submodule.key_value, biased) for other in others_SD]
        for head in range(heads):
            piece = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[piece] @ both[:d][piece] / sqrt(width) for both in keys_values]).exp()
            mixed.append(sum(s * both[d:][piece] for s, both in zip(scores / scores.sum(), keys_values, strict=True)))
        rows.append(affine(torch.cat(mixed), submodule.out, biased))
    return torch.stack(rows)


def layer_by_the_paper(x_ND: Tensor, earlier: list[Tensor], layer: Net, config: WukongConfig) -> Tensor:
    """Sections 3.3 to 3.6 for one example; then each token asks those of the earlier layers."""
    (n, d), biased = x_ND.shape, config.bias == "all"
    first, w_lcb, w_residual = layer.maps.weight_RN.split(layer.maps.rows)
    if config.projection == "static":
        y_NK = first.T
    else:
        y_NK = perceptron((first @ x_ND).flatten(), layer.projection.mlp, biased).reshape(n, config.k)
    fm_NK = (x_ND @ x_ND.T) @ y_NK
    fmb = perceptron(norm(fm_NK.flatten(), layer.fm_norm, config), layer.fmb, biased)
    fmb_FD = fmb.reshape(config.num_fmb_tokens, d)
    residual = w_residual @ x_ND if n != config.num_fmb_tokens + config.num_lcb_tokens else x_ND
    out_MD = norm(torch.cat([fmb_FD, w_lcb @ x_ND]) + residual, layer.norm, config)
    if not (config.cross_layer_attention and earlier):
        return out_MD
    across = layer.attention
    mixed_MD = attention(out_MD, torch.cat([*earlier, x_ND]), across.attention, config.heads, biased)
    return norm(out_MD + mixed_MD, across.norm, config)


def by_the_paper(module: Net, tokens_BND: Tensor, config: WukongConfig) -> Tensor:
    rows = []
    for x_ND in tokens_BND:
        earlier: list[Tensor] = []
        if config.input_norm == "layer_norm":
            x_ND = norm(x_ND.flatten(), module.input_norm, WukongConfig()).reshape(x_ND.shape)
        first_ND = x_ND
        for layer in module.layers:
            earlier, x_ND = [*earlier, x_ND], layer_by_the_paper(x_ND, earlier, layer, config)
        x = torch.cat([*first_ND, *x_ND]) if config.head_input == "all" else x_ND.flatten()
        linears = [piece for piece in module.head if isinstance(piece, nn.Linear)]
        for linear in linears:
            x = affine(x, linear, config.bias == "all" or linear is linears[-1]).clamp(min=0)
        rows.append(x)
    return torch.stack(rows)


def build(config: WukongConfig, tokens: int, dim: int) -> Wukong:
    module = Wukong(config, BackboneInputs(tuple(f"f{i}" for i in range(tokens)), dim)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)  # layer norms' gains and shifts must count in the comparison too
    return module


def random_tokens(batch: int, tokens: int, dim: int) -> Tensor:
    return torch.randn(batch, tokens, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 7),
    head_width=st.integers(1, 4),
    hidden=st.lists(st.integers(1, 5), max_size=2),
    fields=st.fixed_dictionaries(
        {
            "layers": st.integers(1, 3),
            "num_fmb_tokens": st.integers(1, 4),
            "num_lcb_tokens": st.integers(1, 4),
            "k": st.integers(1, 5),
            "projection": st.sampled_from(["static", "input_dependent"]),
            "cross_layer_attention": st.booleans(),
            "heads": st.integers(1, 2),
            "norm": st.sampled_from(["layer_norm", "rms_norm"]),
            "bias": st.sampled_from(["all", "last"]),
            "input_norm": st.sampled_from(["none", "layer_norm"]),
            "head_input": st.sampled_from(["last", "all"]),
            "head_hidden": st.sampled_from([(3,), (5, 3)]),
        }
    ),
)
def test_equals_the_published_equations(
    batch: int, tokens: int, head_width: int, hidden: list[int], fields: dict[str, object]
) -> None:
    config = WukongConfig(projection_tokens=2, projection_hidden=hidden, fmb_hidden=hidden, **fields)
    dim = head_width * config.heads
    torch.manual_seed(0)
    module = build(config, tokens, dim)
    tokens_BND = random_tokens(batch, tokens, dim)
    expected = by_the_paper(module, tokens_BND, config)
    torch.testing.assert_close(module(tokens_BND, {}), expected, rtol=1e-9, atol=1e-9)


def mlp_flops(*widths: int) -> int:
    return 2 * sum(a * b for a, b in pairwise(widths))


def flops_by_the_formula(config: WukongConfig, n: int, d: int) -> int:
    """The one in Wukong's docstring, for one example."""
    n_f, n_l, k, total, counts = config.num_fmb_tokens, config.num_lcb_tokens, config.k, 0, [n]
    for depth in range(config.layers):
        n, m = counts[-1], n_f + n_l
        total += 2 * n * d * (k + n_l) + (2 * n * d * m if n != m else 0)
        total += 2 * n * d * k + mlp_flops(n * k, *config.fmb_hidden, n_f * d)
        if config.projection == "input_dependent":
            c = config.projection_tokens
            total += 2 * n * d * c + mlp_flops(c * d, *config.projection_hidden, n * k)
        if config.cross_layer_attention and depth > 0:
            s = sum(counts)
            total += 4 * m * d * d + 4 * s * d * d + 4 * m * s * d
        counts.append(m)
    read = counts[-1] + (counts[0] if config.head_input == "all" else 0)
    return total + mlp_flops(read * d, *config.head_hidden)


@pytest.mark.parametrize(
    ("fields", "tokens", "dim"),
    [
        ({}, 5, 4),
        ({"num_fmb_tokens": 4, "num_lcb_tokens": 1, "layers": 3}, 5, 6),
        ({"projection": "input_dependent", "projection_hidden": (7, 3), "head_hidden": (9, 4)}, 11, 4),
        ({"head_input": "all", "input_norm": "layer_norm"}, 7, 4),
        ({"cross_layer_attention": True, "layers": 4, "k": 3, "fmb_hidden": ()}, 6, 8),
        (
            {"layers": 2, "num_fmb_tokens": 8, "num_lcb_tokens": 8, "k": 24, "fmb_hidden": (64, 64), "bias": "last"},
            26,
            16,
        ),
    ],
)
def test_costs_what_the_formula_says(fields: dict[str, object], tokens: int, dim: int) -> None:
    config, batch = WukongConfig(**fields), 3
    module = Wukong(config, BackboneInputs(tuple(f"f{i}" for i in range(tokens)), dim))
    counted = count_flops(lambda: module(torch.randn(batch, tokens, dim), {}))
    assert counted == batch * flops_by_the_formula(config, tokens, dim)


def test_only_a_change_of_the_token_count_needs_a_map_for_the_residual() -> None:
    same: Net = build(WukongConfig(num_fmb_tokens=5, num_lcb_tokens=3, k=4, layers=2), tokens=8, dim=4)
    assert [layer.maps.rows for layer in same.layers] == [[4, 3, 0], [4, 3, 0]]
    fewer: Net = build(WukongConfig(num_fmb_tokens=5, num_lcb_tokens=3, k=4, layers=2), tokens=20, dim=4)
    assert [layer.maps.rows for layer in fewer.layers] == [[4, 3, 8], [4, 3, 0]]


def test_a_static_projection_is_shared_and_an_input_dependent_one_is_not() -> None:
    """With a static Y the machine is quadratic in X: doubling X quadruples FM(X), whatever X is."""
    for projection, quadratic in (("static", True), ("input_dependent", False)):
        torch.manual_seed(0)
        config = WukongConfig(layers=1, projection=projection, fmb_hidden=())
        layer: Net = build(config, tokens=6, dim=4).layers[0]
        seen: list[Tensor] = []
        layer.fm_norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        x = random_tokens(3, 6, 4)
        layer(x)
        layer(2 * x)
        assert torch.allclose(seen[1], 4 * seen[0]) is quadratic


def test_without_biases_and_gains_only_matrices_are_learned() -> None:
    config = WukongConfig(
        layers=3, bias="last", norm="rms_norm", projection="input_dependent", cross_layer_attention=True
    )
    vectors = [name for name, parameter in build(config, 6, 4).named_parameters() if parameter.dim() == 1]
    assert vectors == ["head.0.bias"]


@pytest.mark.parametrize("attends", [False, True])
def test_a_deep_model_trains(attends: bool) -> None:
    """Eight layers learn which of two tokens' dot products are positive."""
    torch.manual_seed(0)
    config = WukongConfig(
        layers=8, num_fmb_tokens=4, num_lcb_tokens=4, k=4, norm="rms_norm", bias="last", cross_layer_attention=attends
    )
    model = Wukong(config, BackboneInputs(("a", "b", "c", "d"), 8))
    logit = nn.Linear(model.output_dim, 1)
    optimizer = torch.optim.Adam([*model.parameters(), *logit.parameters()], lr=2e-3)
    losses = []
    for _ in range(40):
        tokens_BND = torch.randn(128, 4, 8)
        label_B = ((tokens_BND[:, 0] * tokens_BND[:, 1]).sum(1) > 0).float()
        loss = nn.functional.binary_cross_entropy_with_logits(logit(model(tokens_BND, {})).squeeze(1), label_B)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) / 5 < 0.5


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    config = WukongConfig(cross_layer_attention=True, heads=3)
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        build(config, tokens=4, dim=8)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"k": 0}, {"projection": "dynamic"}, {"head_hidden": ()}, {"n_f": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WukongConfig(**wrong)
