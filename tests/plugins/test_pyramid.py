"""`pyramid` against a second formulation, example by example and token by token, and the tests of its kinds."""

from __future__ import annotations

from math import ceil, cos, sin, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
import exfm_plugins.encoders
from exfm.components import BackboneInputs, EncoderInputs, JaggedSequence, SequenceShape
from exfm.layers import count_flops
from exfm.testing import BackboneTests, SequenceEncoderTests
from exfm_plugins.encoders.pyramid.backbone import PyramidBackbone
from exfm_plugins.encoders.pyramid.encoder import Pyramid
from exfm_plugins.encoders.pyramid.levels import ChunkMerge
from tests.plugins.checks import Net

CONTEXT = ("user", "item", "hour")


def jagged(examples: list[Tensor], longest: int) -> JaggedSequence:
    offsets = torch.tensor([0, *(len(example) for example in examples)]).cumsum(0)
    return JaggedSequence(torch.cat(examples), offsets, longest)


def events_of(lengths: list[int], dim: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, dim, generator=generator, dtype=torch.float64) for length in lengths]


def normalised(x: Tensor, submodule: Net) -> Tensor:
    if not isinstance(submodule, nn.LayerNorm):
        return x / (x.pow(2).mean() + 1e-6).sqrt()
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + 1e-5).sqrt() * submodule.weight + submodule.bias


def turned(x: Tensor, position: float, heads: int) -> Tensor:
    """Rotary embedding of one row: pair p of a head is turned by ``position / 10000^(p / P)``."""
    pairs = len(x) // heads // 2
    out = x.clone()
    for head in range(heads):
        for pair in range(pairs):
            a, b = head * 2 * pairs + pair, head * 2 * pairs + pairs + pair
            angle = position * 10_000 ** (-pair / pairs)
            out[a] = x[a] * cos(angle) - x[b] * sin(angle)
            out[b] = x[a] * sin(angle) + x[b] * cos(angle)
    return out


def softmax_mix(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    parts = []
    for columns in torch.arange(len(query)).chunk(heads):
        scores = torch.stack([query[columns] @ key[columns] / sqrt(len(columns)) for key in keys])
        parts.append(sum(weight * value[columns] for weight, value in zip(scores.softmax(0), values, strict=True)))
    return torch.cat(parts)


def linear(x: Tensor, submodule: Net) -> Tensor:
    return submodule.weight @ x + (0 if submodule.bias is None else submodule.bias)


def merged(newest_first: list[Tensor], stride: int, submodule: Net) -> list[Tensor]:
    """Chunks of a list of tokens, newest first."""
    chunks = [newest_first[i : i + stride] for i in range(0, len(newest_first), stride)]
    if stride == 1:
        return newest_first
    if submodule.linear is None:
        return [torch.stack(chunk).sum(0) / len(chunk) for chunk in chunks]
    missing = [torch.zeros_like(newest_first[0])] if newest_first else []
    return [linear(torch.cat(chunk + missing * (stride - len(chunk))), submodule.linear) for chunk in chunks]


def level_by_hand(newest_first: list[Tensor], level: Net, shrink: int, queries: int, heads: int) -> list[Tensor]:
    tokens = merged(newest_first, shrink, level.shrink if shrink > 1 else None)
    normed = [normalised(token, level.branch_norm) for token in tokens]
    kept = tokens[:queries]
    for branch in level.branches:
        chunks = merged(normed, branch.stride, branch.merge if branch.stride > 1 else None)
        attention = branch.attention
        pairs = [linear(chunk, attention.key_value).chunk(2) for chunk in chunks]
        keys = [turned(key, -position, heads) for position, (key, _) in enumerate(pairs)]
        answers = []
        for position in range(ceil(len(kept) / branch.stride)):
            query = turned(linear(chunks[position], attention.query), -position, heads)
            answers.append(linear(softmax_mix(query, keys, [value for _, value in pairs], heads), attention.out))
        kept = [token + answers[position // branch.stride] for position, token in enumerate(kept)]
    result = []
    for token in kept:
        hidden = linear(normalised(token, level.ffn_norm), level.ffn[0])
        result.append(token + linear(hidden / (1 + (-hidden).exp()), level.ffn[2]))
    return result


def by_hand(module: Net, examples: list[Tensor], context_BND: Tensor, targets: tuple[int, ...]) -> Tensor:
    config = module.config
    rows = []
    for events, context_ND in zip(examples, context_BND, strict=True):
        tokens = [*events.flip(0)]
        if targets:
            target = sum(context_ND[position] for position in targets)
            tokens = [target, *(event + linear(event * target, module.meeting.linear) for event in tokens)]
        for height, level in enumerate(module.levels):
            shrink = config.shrink if height else 1
            tokens = level_by_hand(tokens, level, shrink, config.queries[height], config.heads)
        tokens = [normalised(token, module.top_norm) for token in tokens]
        zero = torch.zeros_like(context_ND[0])
        summary = (tokens + [zero] * config.recent)[: config.recent]
        pairs = [linear(token, module.pooling.key_value).chunk(2) for token in tokens]
        for query in module.pooling.query_KD:
            mixed = softmax_mix(query, [k for k, _ in pairs], [v for _, v in pairs], config.heads) if pairs else zero
            summary.append(linear(mixed, module.pooling.out))
        rows.append(torch.stack(summary))
    return torch.stack(rows)


def build(config: Pyramid.Config, dim: int, targets: tuple[int, ...] = ()) -> Pyramid:
    torch.manual_seed(0)
    module = Pyramid(config, EncoderInputs("history", dim, 50, CONTEXT, targets)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@given(
    lengths=st.lists(st.integers(0, 13), min_size=1, max_size=4),
    queries=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    strides=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    shrink=st.integers(1, 3),
    merge=st.sampled_from(["mean", "linear"]),
    heads=st.integers(1, 2),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    summary=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    targets=st.sampled_from([(), (1,), (0, 2)]),
)
def test_equals_the_equations(
    lengths: list[int],
    queries: list[int],
    strides: list[int],
    shrink: int,
    merge: str,
    heads: int,
    norm: str,
    summary: tuple[int, int],
    targets: tuple[int, ...],
) -> None:
    config = Pyramid.Config(
        queries=tuple(queries),
        strides=tuple(strides),
        shrink=shrink,
        merge=merge,
        heads=heads,
        norm=norm,
        recent=summary[0],
        pooled=summary[1],
    )
    module = build(config, 4, targets)
    examples = events_of(lengths, 4)
    context_BND = torch.stack(events_of([len(CONTEXT)] * len(lengths), 4, seed=1))
    expected = by_hand(module, examples, context_BND, targets)
    actual = module(jagged(examples, 50), context_BND)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


class TestPyramid(SequenceEncoderTests):
    component = Pyramid
    plugin = exfm_plugins.encoders
    configs = ({}, {"queries": [9, 6], "strides": [3], "shrink": 1, "merge": "linear", "norm": "rms_norm", "recent": 3})


class TestPyramidBackbone(BackboneTests):
    component = PyramidBackbone
    plugin = exfm_plugins.backbones
    configs = ({"queries": [9], "strides": [3], "target": ["item"], "interaction": {"name": "dlrm"}},)


def test_an_older_event_moves_the_oldest_chunk_alone() -> None:
    """Chunks are cut from the newest event on: what an older event changes is the chunk it falls into."""
    events = events_of([9], 4)[0]
    for stride in (2, 3, 4):
        merge = ChunkMerge(4, stride, "linear").double()
        longer = merge(jagged([events], 9)).values_ED
        shorter = merge(jagged([events[1:]], 9)).values_ED
        full = 8 // stride
        assert torch.equal(longer[-full:], shorter[-full:])
        assert not torch.equal(longer[0], shorter[0])


def test_an_event_past_the_queries_is_still_heard() -> None:
    """Truncation drops queries, not keys: the oldest of 40 events reaches the summary of a level that keeps 2."""
    module = build(Pyramid.Config(queries=(2,), strides=(1,)), 4)
    events = events_of([40], 4)[0]
    context_BND = torch.zeros(1, len(CONTEXT), 4, dtype=torch.float64)
    other = torch.cat([-events[:1], events[1:]])
    change = module(jagged([events], 50), context_BND) - module(jagged([other], 50), context_BND)
    assert change.abs().amax() > 1e-6


def expected_flops(config: Pyramid.Config, length: int, dim: int) -> int:
    """The docstring's formula for one example."""
    total, tokens = 0, length
    for height, queries in enumerate(config.queries):
        if height and config.shrink > 1:
            tokens = ceil(tokens / config.shrink)
            total += 2 * config.shrink * tokens * dim**2 if config.merge == "linear" else 0
        kept = min(queries, tokens)
        for stride in config.strides:
            q, c = ceil(kept / stride), ceil(tokens / stride)
            total += (4 * q + 4 * c) * dim**2 + 4 * q * c * dim
            total += 2 * c * stride * dim**2 if stride > 1 and config.merge == "linear" else 0
        total += 4 * config.ffn * kept * dim**2
        tokens = kept
    return total + 4 * tokens * dim**2 + 4 * config.pooled * tokens * dim + 2 * config.pooled * dim**2


def counted_flops(config: Pyramid.Config, length: int, dim: int, targets: tuple[int, ...] = (), batch: int = 3) -> int:
    module = build(config, dim, targets).float()
    sequence = jagged([torch.randn(length, dim) for _ in range(batch)], 50)
    context_BND = torch.randn(batch, len(CONTEXT), dim)
    return count_flops(lambda: module(sequence, context_BND)) // batch


@pytest.mark.parametrize(
    "config",
    [
        Pyramid.Config(queries=(16, 4)),
        Pyramid.Config(queries=(10, 7, 3), strides=(1, 2, 5), merge="linear", shrink=3, ffn=4, pooled=2),
        Pyramid.Config(queries=(40, 40), strides=(3,), shrink=1),
    ],
)
@pytest.mark.parametrize("length", [8, 37])
def test_flops_are_as_documented(config: Pyramid.Config, length: int) -> None:
    assert counted_flops(config, length, 8) == expected_flops(config, length, 8)
    assert counted_flops(config, length, 8, targets=(1,)) == expected_flops(config, length + 1, 8) + length * 2 * 8**2


def test_truncating_merging_and_shrinking_each_save() -> None:
    full = Pyramid.Config(queries=(50, 50), strides=(1, 1), shrink=1)
    truncated = full.model_copy(update={"queries": (16, 16)})
    coarser = full.model_copy(update={"strides": (1, 4)})
    shrunk = full.model_copy(update={"shrink": 2})
    costs = [counted_flops(config, 48, 8) for config in (truncated, coarser, shrunk)]
    assert max(costs) < counted_flops(full, 48, 8)


def test_without_sequences_the_backbone_is_its_interaction() -> None:
    config = PyramidBackbone.Config(interaction={"name": "dlrm"})
    module = PyramidBackbone(config, BackboneInputs(("user", "item"), 8))
    tokens_BND = torch.randn(3, 2, 8)
    assert torch.equal(module(tokens_BND, {}), module.interaction(tokens_BND, {}))


def test_the_backbone_is_encoders_before_the_interaction() -> None:
    shapes = (SequenceShape("items", 50, targets=(1,)), SequenceShape("type", 50))
    inputs = BackboneInputs(("user", "item"), 8, shapes)
    module = PyramidBackbone(PyramidBackbone.Config(interaction={"name": "dlrm"}), inputs)
    tokens_BND = torch.randn(2, 2, 8)
    sequences = {
        name: jagged([torch.randn(n, 8) for n in lengths], 50)
        for name, lengths in {"type": [3, 0], "items": [1, 7]}.items()
    }
    summaries = []
    for shape in shapes:
        alone = Pyramid(Pyramid.Config(), EncoderInputs(shape.name, 8, 50, inputs.tokens, shape.targets))
        alone.load_state_dict(module.encoders[f"sequence_{shape.name}"].state_dict())
        summaries.append(alone(sequences[shape.name], tokens_BND))
    expected = module.interaction(torch.cat([tokens_BND, *summaries], 1), {})
    assert torch.equal(module(tokens_BND, sequences), expected)
    assert len(module.blocks()) == 4


def test_a_named_target_goes_before_the_tokens_that_share_a_table() -> None:
    inputs = BackboneInputs(("user", "item"), 8, (SequenceShape("items", 50, targets=(1,)),))
    encoder: Net = PyramidBackbone(PyramidBackbone.Config(target=("user",)), inputs).encoders["sequence_items"]
    assert encoder.inputs.targets == (0,)


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"target 'itme' is not among .* Did you mean 'item'\? .*item, .*user"):
        PyramidBackbone(PyramidBackbone.Config(target=("itme",)), BackboneInputs(("user", "item"), 8))


@pytest.mark.parametrize("wrong", [{"queries": ()}, {"strides": (0,)}, {"merge": "max"}, {"recent": 0}, {"levels": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Pyramid.Config(**wrong)
