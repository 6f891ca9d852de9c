"""`transformer` against its equations, example by example and event by event, and the tests of every encoder."""

from __future__ import annotations

from functools import partial
from math import erf, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.encoders
from exfm.components import EncoderInputs, JaggedSequence
from exfm.layers import count_flops
from exfm.testing import SequenceEncoderTests
from exfm_plugins.encoders.transformer.encoder import Transformer
from tests.plugins.checks import Net

CONTEXT = ("user", "item", "hour")


class TestTransformer(SequenceEncoderTests):
    component = Transformer
    plugin = exfm_plugins.encoders
    configs = (
        {},
        {"queries": [9, 4], "recent": 3, "append_target": False},
        {"summary": "mean", "norm": "rms_norm", "activation": "silu"},
        {"summary": "target", "layers": 1},
    )


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jagged(lengths: list[int], dim: int, longest: int = 50) -> JaggedSequence:
    return JaggedSequence(random(sum(lengths), dim), torch.tensor([0, *lengths]).cumsum(0), longest)


def build(config: Transformer.Config, dim: int, targets: tuple[int, ...] = ()) -> Transformer:
    torch.manual_seed(0)
    module = Transformer(config, EncoderInputs("history", dim, 50, CONTEXT, targets)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def linear(x: Tensor, submodule: Net) -> Tensor:
    return submodule.weight @ x + (0 if submodule.bias is None else submodule.bias)


def normalised(x: Tensor, submodule: Net) -> Tensor:
    if not isinstance(submodule, nn.LayerNorm):
        return x / (x.pow(2).mean() + 1e-6).sqrt()
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + 1e-5).sqrt() * submodule.weight + submodule.bias


def turned(row: Tensor, position: int, heads: int) -> Tensor:
    """Rotary embedding: the two halves of a head are the parts of complex numbers."""
    parts = []
    for head in row.chunk(heads):
        first, second = head.chunk(2)
        angle = position * 10_000.0 ** (-torch.arange(len(first), dtype=torch.float64) / len(first))
        product = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
        parts += [product.real, product.imag]
    return torch.cat(parts)


def mix(query: Tensor, pairs: list[tuple[Tensor, ...]], heads: int) -> Tensor:
    answer = torch.zeros_like(query)
    for columns in torch.arange(len(query)).chunk(heads):
        powers = [(query[columns] @ key[columns] / sqrt(len(columns))).exp() for key, _ in pairs]
        for power, (_, value) in zip(powers, pairs, strict=True):
            answer[columns] += power / sum(powers) * value[columns]
    return answer


def layer_by_hand(events: list[Tensor], block: Net, kept: int, heads: int) -> list[Tensor]:
    """All events of an example, of which the last ``kept`` are handed on."""
    attention = block.attention
    normed = [normalised(event, block.attention_norm) for event in events]
    pairs = [linear(event, attention.key_value).chunk(2) for event in normed]
    pairs = [(turned(key, position, heads), value) for position, (key, value) in enumerate(pairs)]
    result = []
    for position, event in enumerate(events):
        query = turned(linear(normed[position], attention.query), position, heads)
        event = event + linear(mix(query, pairs[: position + 1], heads), attention.out)
        hidden = linear(normalised(event, block.ffn_norm), block.ffn[0])
        hidden = hidden * torch.tensor([(1 + erf(x / sqrt(2))) / 2 for x in hidden.tolist()], dtype=torch.float64)
        result.append(event + linear(hidden, block.ffn[2]))
    return result[len(result) - min(kept, len(result)) :]


def by_hand(module: Net, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
    config, targets, rows = module.config, module.inputs.targets, []
    assert isinstance(config, Transformer.Config)
    for history, context in zip(torch.split(sequence.values_ED, sequence.lengths.tolist()), context_BND, strict=True):
        target, events = sum(context[position] for position in targets), [*history]
        if targets and config.append_target:
            events.append(target)
        for block, kept in zip(module.layers, config.queries or [50] * config.layers, strict=True):
            events = layer_by_hand(events, block, kept, config.heads)
        events, zero = [normalised(event, module.top_norm) for event in events], torch.zeros_like(context[0])
        if config.summary == "last":
            rows += (events[::-1] + [zero] * config.recent)[: config.recent]
        elif config.summary == "mean":
            rows.append(sum(events) / len(events) if events else zero)
        else:
            query = module.pooling.query_KD[0] + (linear(target, module.shift) if targets else 0)
            pairs = [linear(event, module.pooling.key_value).chunk(2) for event in events]
            rows.append(linear(mix(query, pairs, config.heads), module.pooling.out))
    return torch.stack(rows).unflatten(0, (sequence.batch_size, -1))


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    queries=st.lists(st.integers(1, 6), min_size=1, max_size=3),
    truncated=st.booleans(),
    heads=st.integers(1, 2),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    summary=st.sampled_from(["last", "mean", "target"]),
    recent=st.integers(1, 3),
    append_target=st.booleans(),
    targets=st.sampled_from([(), (1,), (0, 2)]),
)
def test_equals_the_equations(
    lengths: list[int],
    queries: list[int],
    truncated: bool,
    heads: int,
    norm: str,
    summary: str,
    recent: int,
    append_target: bool,
    targets: tuple[int, ...],
) -> None:
    config = Transformer.Config(
        layers=len(queries),
        queries=tuple(queries) if truncated else (),
        heads=heads,
        norm=norm,
        summary=summary,
        recent=recent,
        append_target=append_target,
        ffn=2,
    )
    module = build(config, 4, targets)
    sequence, context_BND = jagged(lengths, 4), random(len(lengths), len(CONTEXT), 4, seed=1)
    expected = by_hand(module, sequence, context_BND)
    torch.testing.assert_close(module(sequence, context_BND), expected, rtol=1e-9, atol=1e-9)


def test_no_event_sees_a_newer_one() -> None:
    module, sequence = build(Transformer.Config(summary="mean"), 4), jagged([9, 4], 4)
    changed = sequence.with_values(sequence.values_ED.index_fill(0, torch.tensor([5]), 3.0))
    first, second = sequence, changed
    for block in module.layers:
        first, second = block(first), block(second)
    differs = (first.values_ED != second.values_ED).any(1).tolist()
    assert differs == [False] * 5 + [True] * 4 + [False] * 4


def test_the_candidate_meets_the_history_only_where_it_may() -> None:
    """Two candidates: the same summary where none of the ways in is open."""
    sequence, first, second = jagged([6], 4), random(1, 3, 4, seed=1), random(1, 3, 4, seed=2)
    for summary, append_target, aware in (("last", True, True), ("last", False, False), ("target", False, True)):
        module = build(Transformer.Config(summary=summary, append_target=append_target), 4, (1,))
        assert torch.equal(module(sequence, first), module(sequence, second)) is not aware


def test_one_user_of_thousands_of_events_among_short_ones() -> None:
    """The long history is read as it is alone, and none of the short ones pays for it."""
    module = build(Transformer.Config(), 4, (1,))
    lengths, longest = [20] * 30 + [4_000] + [3] * 30, 4_000
    context_BND = random(len(lengths), 3, 4, seed=1)
    sequence = jagged(lengths, 4, longest)
    together = module(sequence, context_BND)
    histories = torch.split(sequence.values_ED, lengths)
    for position in (0, 30, 60):
        alone = JaggedSequence(histories[position], torch.tensor([0, lengths[position]]), longest)
        torch.testing.assert_close(together[[position]], module(alone, context_BND[[position]]), rtol=1e-9, atol=1e-9)

    def flops(histories: list[int]) -> int:
        return count_flops(lambda: module(jagged(histories, 4, longest), random(len(histories), 3, 4)))

    assert flops(lengths) == 30 * flops([20]) + flops([4_000]) + 30 * flops([3])


def test_what_the_summary_does_not_read_is_not_computed() -> None:
    """The last layer has queries for the events of the summary alone; truncation saves in the others too."""
    costs = []
    for fields in ({"summary": "mean"}, {}, {"queries": (8, 8)}):
        module = build(Transformer.Config(**fields), 4)
        costs.append(count_flops(partial(module, jagged([40, 40], 4), random(2, 3, 4))))
    assert costs == sorted(costs, reverse=True) and len(set(costs)) == 3


def test_a_number_of_queries_for_each_layer() -> None:
    with pytest.raises(ValueError, match="queries: 1 numbers for 2 layers; give one for each layer, or none"):
        Transformer.Config(queries=(4,))


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"queries": (0, 2)}, {"summary": "max"}, {"recent": 0}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Transformer.Config(**wrong)
