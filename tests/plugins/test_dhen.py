"""`dhen` against a second formulation, written example by example and token by token, and the tests of a backbone."""

from __future__ import annotations

from functools import partial
from math import sqrt

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.dhen.model import DHEN
from tests.plugins.checks import Net


class TestDHEN(BackboneTests):
    component = DHEN
    plugin = exfm_plugins.backbones
    configs = (
        {},
        {"modules": ["attention", "linear"], "ensemble": "sum", "num_tokens": 4, "norm": "rms_norm"},
        {"modules": ["cross", "dot", "dot"], "ensemble": "weighted_sum", "cross_rank": 0, "activation": "silu"},
    )


def norm(x_ND: Tensor, net: Net, config: DHEN.Config) -> Tensor:
    """Of the last axis."""
    if config.norm == "rms_norm":
        return x_ND / (x_ND.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    centred = x_ND - x_ND.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * net.weight + net.bias


def affine(x: Tensor, linear: Net) -> Tensor:
    return linear.weight @ x + linear.bias


def perceptron(x: Tensor, net: Net) -> Tensor:
    """ReLU between the layers."""
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    for linear in linears[:-1]:
        x = affine(x, linear).clamp(min=0)
    return affine(x, linears[-1])


def dot(x_ND: Tensor, net: Net, config: DHEN.Config) -> Tensor:
    n, d = x_ND.shape
    products = torch.stack([x_ND[i] @ x_ND[j] for i in range(n) for j in range(i + 1, n)])
    return perceptron(products, net.mlp).reshape(config.num_tokens, d)


def cross(x_ND: Tensor, net: Net, config: DHEN.Config) -> Tensor:
    x = x_ND.flatten()
    last = net.matrix[1] if config.cross_rank else net.matrix
    matrix = last.weight @ net.matrix[0].weight if config.cross_rank else last.weight
    crossed = torch.stack([x[i] * (matrix[i] @ x + last.bias[i]) + x[i] for i in range(len(x))])
    return net.map.weight @ crossed.reshape(x_ND.shape)


def linear(x_ND: Tensor, net: Net, config: DHEN.Config) -> Tensor:
    return torch.stack([sum(row[n] * x_ND[n] for n in range(len(x_ND))) for row in net.weight])


def attention(x_ND: Tensor, net: Net, config: DHEN.Config) -> Tensor:
    """One query and head by head."""
    d, width = x_ND.shape[1], x_ND.shape[1] // config.heads
    rows = []
    for x in x_ND:
        query, mixed = affine(x, net.attention.query), []
        keys_values = [affine(other, net.attention.key_value) for other in x_ND]
        for head in range(config.heads):
            piece = slice(head * width, (head + 1) * width)
            scores = torch.stack([query[piece] @ both[:d][piece] / sqrt(width) for both in keys_values]).exp()
            mixed.append(sum(s * both[d:][piece] for s, both in zip(scores / scores.sum(), keys_values, strict=True)))
        first = norm(x + affine(torch.cat(mixed), net.attention.out), net.attention_norm, config)
        rows.append(norm(first + perceptron(first, net.mlp), net.mlp_norm, config))
    return net.map.weight @ torch.stack(rows)


MODULES = {"dot": dot, "cross": cross, "linear": linear, "attention": attention}


def layer_by_the_paper(x_ND: Tensor, layer: Net, config: DHEN.Config) -> Tensor:
    parts = [MODULES[name](x_ND, net, config) for name, net in zip(config.modules, layer.interactions, strict=True)]
    if config.ensemble == "concat":
        ensemble_MD = torch.cat(parts)
    elif config.ensemble == "sum":
        ensemble_MD = sum(parts, torch.zeros_like(parts[0]))
    else:
        ensemble_MD = sum(layer.weights[i] * piece for i, piece in enumerate(parts))
    same = len(ensemble_MD) == len(x_ND)
    return norm(ensemble_MD + (x_ND if same else layer.shortcut.weight @ x_ND), layer.norm, config)


def by_the_paper(module: Net, tokens_BND: Tensor, config: DHEN.Config) -> Tensor:
    rows = []
    for x_ND in tokens_BND:
        for layer in module.layers:
            x_ND = layer_by_the_paper(x_ND, layer, config)
        x = x_ND.flatten()
        for piece in module.head:
            x = affine(x, piece).clamp(min=0) if isinstance(piece, nn.Linear) else x
        rows.append(x)
    return torch.stack(rows)


def inputs(tokens: int, dim: int) -> BackboneInputs:
    return BackboneInputs(tuple(f"f{i}" for i in range(tokens)), dim)


@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 6),
    head_width=st.integers(1, 3),
    hidden=st.lists(st.integers(1, 5), max_size=2),
    fields=st.fixed_dictionaries(
        {
            "layers": st.integers(1, 3),
            "modules": st.lists(st.sampled_from(list(MODULES)), min_size=1, max_size=4),
            "ensemble": st.sampled_from(["concat", "sum", "weighted_sum"]),
            "num_tokens": st.integers(1, 4),
            "cross_rank": st.integers(0, 3),
            "heads": st.integers(1, 2),
            "norm": st.sampled_from(["layer_norm", "rms_norm"]),
            "head_hidden": st.sampled_from([(3,), (5, 3)]),
        }
    ),
)
def test_equals_the_published_equations(
    batch: int, tokens: int, head_width: int, hidden: list[int], fields: dict[str, object]
) -> None:
    config = DHEN.Config(dot_hidden=hidden, attention_hidden=5, **fields)
    later = config.num_tokens * (len(config.modules) if config.ensemble == "concat" else 1)
    assume("dot" not in config.modules or min([tokens, later][: config.layers]) > 1)
    dim = head_width * config.heads
    torch.manual_seed(0)
    module = DHEN(config, inputs(tokens, dim)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)  # layer norms' gains and shifts must count in the comparison too
    tokens_BND = torch.randn(batch, tokens, dim, dtype=torch.float64)
    expected = by_the_paper(module, tokens_BND, config)
    torch.testing.assert_close(module(tokens_BND, {}), expected, rtol=1e-9, atol=1e-9)


def test_the_shortcut_is_mapped_only_where_the_number_of_tokens_changes() -> None:
    module = DHEN(DHEN.Config(modules=("dot", "linear"), num_tokens=3, layers=2), inputs(5, 4))
    assert [name for name, _ in module.named_parameters() if "shortcut" in name] == ["layers.0.shortcut.weight"]


def test_a_weighted_sum_starts_as_the_average() -> None:
    fields = {"modules": ("linear", "linear"), "layers": 1, "num_tokens": 4}
    weighted = DHEN(DHEN.Config(ensemble="weighted_sum", **fields), inputs(4, 8)).double().layers[0]
    summed: Net = DHEN(DHEN.Config(ensemble="sum", **fields), inputs(4, 8)).double().layers[0]
    summed.load_state_dict(weighted.state_dict(), strict=False)
    with torch.no_grad():
        for interaction in summed.interactions:
            interaction.weight /= 2
    tokens_BND = torch.randn(3, 4, 8, dtype=torch.float64)
    torch.testing.assert_close(weighted(tokens_BND), summed(tokens_BND))


def test_a_low_rank_keeps_the_cross_module_affordable() -> None:
    """A full matrix costs 2 (N D)^2 FLOPs, one of rank r costs 4 N D r."""
    costs = []
    for rank in (0, 5):
        config = DHEN.Config(modules=("cross",), cross_rank=rank, layers=1)
        module = DHEN(config, inputs(8, 6))
        costs.append(count_flops(partial(module, torch.randn(1, 8, 6), {})))
    assert costs[0] - costs[1] == 2 * 48 * 48 - 4 * 48 * 5


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [({"modules": ("dot",)}, 1), ({"modules": ("dot", "linear"), "ensemble": "sum", "num_tokens": 1}, 5)],
)
def test_dot_products_of_a_single_token_are_refused(fields: dict[str, object], tokens: int) -> None:
    with pytest.raises(ValueError, match=r"'dot' needs pairs.*single token"):
        DHEN(DHEN.Config(**fields), inputs(tokens, 4))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        DHEN(DHEN.Config(modules=("attention",), heads=3), inputs(4, 8))


@pytest.mark.parametrize(
    "wrong", [{"layers": 0}, {"modules": ()}, {"modules": ("conv",)}, {"ensemble": "max"}, {"cross_rank": -1}, {"k": 2}]
)
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DHEN.Config(**wrong)
