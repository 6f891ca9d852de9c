"""`two_tower` against a loop over examples, its towers apart from each other, and the tests of every backbone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.two_tower.model import TwoTower

TOKENS = ("dense", "dense:1", "user", "item", "shop", "history:0")


class TestTwoTower(BackboneTests):
    component = TwoTower
    plugin = exfm_plugins.backbones
    configs = (
        {"item": ["item", "shop"]},
        {"item": ["dense"], "hidden": [], "output": 6, "normalise": False, "activation": "gelu"},
    )


def build(item: tuple[str, ...], dim: int = 5, **fields: object) -> TwoTower:
    torch.manual_seed(0)
    return TwoTower(TwoTower.Config(item=item, **fields), BackboneInputs(TOKENS, dim)).double()


def examples(batch: int, dim: int = 5) -> Tensor:
    return torch.randn(batch, len(TOKENS), dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def tower_by_hand(tower: nn.Sequential, tokens: list[Tensor], normalise: bool) -> Tensor:
    """One example's vector, from the weights alone."""
    *hidden, last = [layer for layer in tower if isinstance(layer, nn.Linear)]
    x = torch.cat(tokens)
    for linear in hidden:
        x = (linear.weight @ x + linear.bias).clamp(min=0)
    x = last.weight @ x + last.bias
    # RMSNorm keeps away from a division by zero with 1e-6 under the root.
    return x / ((x @ x) / len(x) + 1e-6).sqrt() if normalise else x


@given(
    batch=st.integers(1, 4),
    item=st.sets(st.sampled_from(["dense", "user", "item", "shop", "history"]), min_size=1, max_size=4),
    hidden=st.lists(st.integers(1, 6), max_size=2),
    output=st.integers(2, 5),
    normalise=st.booleans(),
)
def test_equals_a_loop(batch: int, item: set[str], hidden: list[int], output: int, normalise: bool) -> None:
    module = build(tuple(item), hidden=tuple(hidden), output=output, normalise=normalise)
    tokens_BND = examples(batch)
    for row, example_ND in zip(module(tokens_BND, {}), tokens_BND, strict=True):
        sides: dict[bool, list[Tensor]] = {True: [], False: []}
        for name, token in zip(TOKENS, example_ND, strict=True):
            sides[name.removesuffix(":0").removesuffix(":1") in item].append(token)
        user = tower_by_hand(module.user, sides[False], normalise)
        of_item = tower_by_hand(module.item, sides[True], normalise)
        torch.testing.assert_close(row, user * of_item, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("normalise", [False, True])
def test_items_can_be_indexed(normalise: bool) -> None:
    """The logits of all pairs of user and item are dot products of vectors that are made apart."""
    users, items = 3, 4
    module, head = build(("item", "shop"), normalise=normalise), nn.Linear(32, 1).double()
    tokens_BND, of_item = examples(users + items), [TOKENS.index("item"), TOKENS.index("shop")]
    of_user = [position for position in range(len(TOKENS)) if position not in of_item]
    query_UR = module.user(tokens_BND[:users, of_user].flatten(1)) * head.weight
    index_IR = module.item(tokens_BND[users:, of_item].flatten(1))
    answer_UI = query_UR @ index_IR.T + head.bias
    pairs_UIND = tokens_BND[:users, None].repeat(1, items, 1, 1)
    pairs_UIND[:, :, of_item] = tokens_BND[users:, of_item]
    logit_UI = head(module(pairs_UIND.flatten(0, 1), {})).view(users, items)
    torch.testing.assert_close(logit_UI, answer_UI, rtol=1e-9, atol=1e-9)


def test_flops_are_those_of_the_docstring() -> None:
    module = build(("item", "shop"), dim=6, hidden=(10, 7), output=4).float()
    expected = 2 * ((4 * 6 * 10 + 10 * 7 + 7 * 4) + (2 * 6 * 10 + 10 * 7 + 7 * 4))
    assert count_flops(lambda: module(torch.zeros(3, len(TOKENS), 6), {})) == 3 * expected


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (("itme",), "item 'itme' is not among the features. Did you mean 'item'"),
        (
            ("history:0",),
            "'history:0' is not among the features. Did you mean 'history'.* item, shop, user",
        ),
        (("dense", "user", "item", "shop", "history"), "takes all tokens"),
    ],
)
def test_wrong_items_are_refused(item: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(item)


@pytest.mark.parametrize("wrong", [{"item": ()}, {"hidden": (0,)}, {"output": 0}, {"activation": "tanh"}, {"user": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TwoTower.Config(**{"item": ("item",)} | wrong)
