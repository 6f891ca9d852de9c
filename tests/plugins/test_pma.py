"""`pma` against its equations, example by example and query by query, and the tests of every sequence encoder."""

from __future__ import annotations

from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.encoders
from exfm.components import EncoderInputs, JaggedSequence
from exfm.layers import count_flops
from exfm.testing import SequenceEncoderTests
from exfm_plugins.encoders.pma.encoder import PMA
from tests.plugins.checks import Net

CONTEXT = ("user", "item", "hour")


class TestPMA(SequenceEncoderTests):
    component = PMA
    plugin = exfm_plugins.encoders
    configs = ({}, {"queries": 3, "heads": 1, "ffn": 0, "target_aware": False}, {"norm": "rms_norm"})


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def build(config: PMA.Config, dim: int, targets: tuple[int, ...] = ()) -> PMA:
    torch.manual_seed(0)
    module = PMA(config, EncoderInputs("history", dim, 50, CONTEXT, targets)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def jagged(lengths: list[int], dim: int) -> JaggedSequence:
    return JaggedSequence(random(sum(lengths), dim), torch.tensor([0, *lengths]).cumsum(0), 50)


def normalised(x: Tensor, submodule: Net) -> Tensor:
    if not isinstance(submodule, nn.LayerNorm):
        return x / (x.pow(2).mean() + 1e-6).sqrt()
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + 1e-5).sqrt() * submodule.weight + submodule.bias


def multi_head(query: Tensor, events: Tensor, module: Net, heads: int) -> Tensor:
    """Of one query over one example's events."""
    weight, bias = module.pooling.key_value.weight, module.pooling.key_value.bias
    pairs = [(weight @ event + bias).chunk(2) for event in events]
    mixed = torch.zeros_like(query)
    for columns in torch.arange(len(query)).chunk(heads):
        powers = [(query[columns] @ key[columns] / sqrt(len(columns))).exp() for key, _ in pairs]
        for power, (_, value) in zip(powers, pairs, strict=True):
            mixed[columns] += power / sum(powers) * value[columns]
    return module.pooling.out.weight @ mixed + module.pooling.out.bias


def by_hand(module: Net, config: PMA.Config, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
    rows = []
    for events, context in zip(torch.split(sequence.values_ED, sequence.lengths.tolist()), context_BND, strict=True):
        for query in module.pooling.query_KD:
            if config.target_aware and module.inputs.targets:
                query = query + module.shift.weight @ sum(context[position] for position in module.inputs.targets)
            token = normalised(query + multi_head(query, events, module, config.heads), module.norm)
            if config.ffn:
                first, _, second = module.ffn
                hidden = (first.weight @ token + first.bias).clamp(min=0)
                token = normalised(token + second.weight @ hidden + second.bias, module.ffn_norm)
            rows.append(token)
    return torch.stack(rows).unflatten(0, (sequence.batch_size, config.queries))


@given(
    lengths=st.lists(st.integers(0, 12), min_size=1, max_size=4),
    queries=st.integers(1, 3),
    heads=st.integers(1, 2),
    ffn=st.integers(0, 2),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    target_aware=st.booleans(),
    targets=st.sampled_from([(), (1,), (0, 2)]),
)
def test_equals_the_equations(
    lengths: list[int],
    queries: int,
    heads: int,
    ffn: int,
    norm: str,
    target_aware: bool,
    targets: tuple[int, ...],
) -> None:
    config = PMA.Config(queries=queries, heads=heads, ffn=ffn, norm=norm, target_aware=target_aware)
    module = build(config, 4, targets)
    sequence, context_BND = jagged(lengths, 4), random(len(lengths), len(CONTEXT), 4, seed=1)
    expected = by_hand(module, config, sequence, context_BND)
    torch.testing.assert_close(module(sequence, context_BND), expected, rtol=1e-9, atol=1e-9)


def test_the_candidate_decides_what_is_looked_for() -> None:
    """Another candidate gives another summary, unless the queries are those of everyone."""
    sequence, first, second = jagged([6], 4), random(1, 3, 4, seed=1), random(1, 3, 4, seed=2)
    for target_aware in (True, False):
        pooling = build(PMA.Config(target_aware=target_aware), 4, (1,))
        assert torch.equal(pooling(sequence, first), pooling(sequence, second)) is not target_aware


def test_the_order_of_events_is_not_seen() -> None:
    module, sequence, context_BND = build(PMA.Config(), 4, (1,)), jagged([7], 4), random(1, 3, 4, seed=1)
    turned = sequence.with_values(sequence.values_ED.flip(0))
    torch.testing.assert_close(module(sequence, context_BND), module(turned, context_BND), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("queries", "ffn", "length"), [(2, 2, 9), (3, 0, 20)])
def test_flops_are_as_documented(queries: int, ffn: int, length: int) -> None:
    dim, module = 8, build(PMA.Config(queries=queries, ffn=ffn), 8)
    counted = count_flops(lambda: module(jagged([length] * 3, dim), random(3, 3, dim)))
    attention = 4 * length * dim**2 + 4 * queries * length * dim + 2 * queries * dim**2
    assert counted == 3 * (attention + 4 * ffn * queries * dim**2)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 4"):
        build(PMA.Config(heads=3), 4)
