"""`hstu` against the published equations, pair by pair of events, and the tests of every encoder."""

from __future__ import annotations

from itertools import pairwise
from math import floor, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.encoders
from exfm.components import EncoderInputs, JaggedSequence
from exfm.layers import count_flops
from exfm.testing import Examples, SequenceEncoderTests, random_examples
from exfm_plugins.encoders.hstu.encoder import HSTU
from tests.plugins.checks import Net

CONTEXT = ("user", "item", "genre")
LONGEST = 12


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def normed(x: Tensor, layer: Net) -> Tensor:
    """Of one vector."""
    if not isinstance(layer, nn.LayerNorm):
        return x / (x.square().mean() + 1e-6).sqrt()
    centred = x - x.mean()
    return centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def layer_by_the_paper(
    layer: Net, events_TD: list[Tensor], ages_T: list[int], config: HSTU.Config, longest: int
) -> list[Tensor]:
    heads, a_width, l_width = config.heads, config.attention_dim, config.linear_dim
    widths = [heads * a_width, heads * a_width, heads * l_width, heads * l_width]
    parts = [silu(layer.f1.weight @ normed(event, layer.norm) + layer.f1.bias).split(widths) for event in events_TD]
    outputs = []
    for i, event in enumerate(events_TD):
        query = parts[i][0].view(heads, a_width)
        mixed = torch.zeros(heads, l_width, dtype=event.dtype)
        for j in range(i + 1):
            key, value = parts[j][1].view(heads, a_width), parts[j][2].view(heads, l_width)
            bias = layer.bias_P[min(i - j, config.position_buckets - 1)] if config.position_buckets else 0.0
            if config.time_buckets:
                bucket = floor(log(max(abs(ages_T[i] - ages_T[j]), 1)) / 0.301)
                bias = bias + layer.time_bias_S[min(bucket, config.time_buckets - 1)]
            for head in range(heads):
                mixed[head] += silu(query[head] @ key[head] + bias) * value[head]
        divisor = longest if config.divisor == "max_length" else i + 1
        gated = normed(mixed.flatten() / divisor, layer.mixed_norm) * parts[i][3]
        outputs.append(event + layer.f2.weight @ gated + layer.f2.bias)
    return outputs


def pooled(module: Net, events: list[Tensor], target: Tensor | None, heads: int) -> Tensor:
    """Softmax attention of the learned query, moved by the candidate, head by head."""
    pooling = module.pooling
    query = pooling.query_KD[0] if target is None else pooling.query_KD[0] + module.shift.weight @ target
    keys_values = [pooling.key_value.weight @ event + pooling.key_value.bias for event in events]
    mixed = []
    for head in torch.arange(len(query)).chunk(heads):
        scores = [(query[head] @ both[head]) / len(head) ** 0.5 for both in keys_values]
        total = sum(score.exp() for score in scores)
        values = [both[head + len(query)] for both in keys_values]
        mixed.append(sum((s.exp() / total * v for s, v in zip(scores, values, strict=True)), 0 * query[head]))
    return pooling.out.weight @ torch.cat(mixed) + pooling.out.bias


def by_the_paper(module: Net, examples: Examples, config: HSTU.Config) -> Tensor:
    rows, targets = [], module.inputs.targets
    for history_TD, ages_T, context_ND in zip(
        examples.events["history"], examples.ages["history"], examples.tokens_BND, strict=True
    ):
        target = sum(context_ND[position] for position in targets) if targets else None
        appended = [target] if target is not None and config.append_target else []
        events = [*history_TD, *appended]
        for layer in module.layers:
            ages = [*ages_T.tolist(), *[0] * len(appended)]
            events = layer_by_the_paper(layer, events, ages, config, LONGEST + len(appended))
        events = [normed(event, module.top_norm) for event in events]
        nothing = context_ND.new_zeros(context_ND.shape[1])
        if config.summary == "last":
            rows.append(events[-1] if events else nothing)
        elif config.summary == "mean":
            rows.append(sum(events, nothing) / max(len(events), 1))
        else:
            rows.append(pooled(module, events, target, config.heads))
    return torch.stack(rows).unsqueeze(1)


def build(config: HSTU.Config, dim: int, targets: tuple[int, ...] = (1,), longest: int = LONGEST) -> HSTU:
    torch.manual_seed(0)
    module = HSTU(config, EncoderInputs("history", dim, longest, CONTEXT, targets, times=True)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, dtype=parameter.dtype))
    return module


class TestHSTU(SequenceEncoderTests):
    component = HSTU
    plugin = exfm_plugins.encoders
    configs = (
        {},
        {"summary": "mean", "heads": 3, "linear_dim": 5, "position_buckets": 0, "append_target": False},
        {"summary": "target", "divisor": "events", "norm": "rms_norm", "layers": 1, "position_buckets": 3},
        {"time_buckets": 64},
    )


@given(
    lengths=st.lists(st.integers(0, LONGEST), min_size=1, max_size=4),
    head=st.integers(1, 3),
    heads=st.integers(1, 2),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    layers=st.integers(1, 3),
    buckets=st.integers(0, 5),
    time_buckets=st.sampled_from([0, 1, 9, 64]),
    divisor=st.sampled_from(["max_length", "events"]),
    summary=st.sampled_from(["last", "mean", "target"]),
    append_target=st.booleans(),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    targets=st.sampled_from([(), (1,), (1, 2)]),
)
def test_equals_the_published_equations_and_their_gradients(
    lengths: list[int],
    head: int,
    heads: int,
    widths: tuple[int, int],
    layers: int,
    buckets: int,
    time_buckets: int,
    divisor: str,
    summary: str,
    append_target: bool,
    norm: str,
    targets: tuple[int, ...],
) -> None:
    config = HSTU.Config(
        layers=layers,
        heads=heads,
        attention_dim=widths[0],
        linear_dim=widths[1],
        position_buckets=buckets,
        time_buckets=time_buckets,
        divisor=divisor,
        summary=summary,
        append_target=append_target,
        norm=norm,
    )
    module = build(config, head * heads, targets)
    examples = random_examples(
        len(lengths), len(CONTEXT), head * heads, {"history": lengths}, max_length=LONGEST
    ).requires_grad()
    actual = module(examples.sequences()["history"], examples.tokens_BND)
    expected = by_the_paper(module, examples, config)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    if not expected.requires_grad:
        return
    leaves = [examples.tokens_BND, *examples.events["history"], *module.parameters()]
    slope = torch.randn(actual.shape, generator=torch.Generator().manual_seed(3), dtype=actual.dtype)
    first, second = (
        torch.autograd.grad(output, leaves, slope, allow_unused=True, materialize_grads=True)
        for output in (actual, expected)
    )
    torch.testing.assert_close(first, second, rtol=1e-7, atol=1e-9)


def test_an_event_sees_only_older_ones_and_the_candidate_sees_all() -> None:
    module, longest = build(HSTU.Config(layers=2, summary="mean"), 4), LONGEST
    examples = random_examples(1, len(CONTEXT), 4, {"history": [6]}, max_length=longest)

    def layers_of(events_TD: Tensor, context_BND: Tensor) -> Tensor:
        sequence = JaggedSequence(events_TD, torch.tensor([0, len(events_TD)]), longest)
        sequence = sequence.append(context_BND[:, 1:2])
        for layer in module.layers:
            sequence = layer(sequence)
        return sequence.values_ED

    events_TD, other_ND = examples.events["history"][0], torch.randn(2, 4, dtype=torch.float64)
    before = layers_of(events_TD, examples.tokens_BND)
    after = layers_of(torch.cat([events_TD[:3], other_ND[:1], events_TD[4:]]), examples.tokens_BND)
    torch.testing.assert_close(after[:3], before[:3], rtol=1e-12, atol=1e-12)
    assert ((after[3:] - before[3:]).abs().amax(1) > 1e-6).all()
    another = layers_of(events_TD, examples.tokens_BND + other_ND[1])
    torch.testing.assert_close(another[:-1], before[:-1], rtol=1e-12, atol=1e-12)


def test_bias_tells_apart_events_of_equal_values() -> None:
    """With equal events only distances can matter: without a bias, order cannot."""
    events_TD = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 1, 4, 0, 2])
    context = torch.zeros(1, len(CONTEXT), 4, dtype=torch.float64)
    for buckets, same in ((0, True), (3, False)):
        config = HSTU.Config(layers=1, position_buckets=buckets)
        module, offsets = build(config, 4), torch.tensor([0, 5])
        first = module(JaggedSequence(events_TD, offsets, LONGEST), context)
        second = module(JaggedSequence(events_TD[order], offsets, LONGEST), context)
        assert torch.allclose(first, second, rtol=1e-9, atol=1e-9) == same


def layer_values(module: Net, events_TD: Tensor, ages_T: Tensor) -> Tensor:
    """All events after the layers, without a candidate."""
    sequence = JaggedSequence(events_TD, torch.tensor([0, len(events_TD)]), LONGEST, ages_T)
    for layer in module.layers:
        sequence = layer(sequence)
    return sequence.values_ED


def test_the_age_of_an_event_reaches_itself_and_newer_ones_only() -> None:
    module = build(HSTU.Config(summary="mean", time_buckets=64), 4)
    events_TD = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ages_T = torch.tensor([900_000, 80_000, 7_000, 600, 50, 4])
    before = layer_values(module, events_TD, ages_T)
    after = layer_values(module, events_TD, ages_T.index_fill(0, torch.tensor([3]), 3_000))
    assert torch.equal(after[:3], before[:3])
    assert (after[3:] != before[3:]).any(1).all()


def test_only_differences_of_times_count() -> None:
    """The same history seen an hour later gives the same events; the candidate item, which is of now, sees it."""
    module = build(HSTU.Config(summary="mean", time_buckets=64), 4)
    examples = random_examples(1, len(CONTEXT), 4, {"history": [6]}, max_length=LONGEST)
    events_TD, ages_T = examples.events["history"][0], examples.ages["history"][0]
    assert torch.equal(layer_values(module, events_TD, ages_T), layer_values(module, events_TD, ages_T + 3_600))
    offsets = torch.tensor([0, 6])
    now, later = (
        module(JaggedSequence(events_TD, offsets, LONGEST, ages), examples.tokens_BND)
        for ages in (ages_T, ages_T + 10_000_000)
    )
    assert not torch.equal(now, later)


def test_buckets_of_time_grow_by_the_factor_of_the_authors_code() -> None:
    layer: Net = build(HSTU.Config(layers=1, time_buckets=64), 4).layers[0]
    with torch.no_grad():
        layer.time_bias_S.copy_(torch.arange(64))
    seconds = [0, 1, 2, 3, 60, 3_600, 86_400, 31_536_000, 2**31 - 1]
    buckets = layer._time_bias(1, torch.tensor([[*seconds, 0]], dtype=torch.int32)).flatten().tolist()[:-1]
    assert buckets == [min(floor(log(max(second, 1)) / 0.301), 63) for second in seconds]
    assert all(before <= after for before, after in pairwise(buckets))


def test_a_sequence_without_times_is_refused() -> None:
    inputs = EncoderInputs("history", 4, LONGEST, CONTEXT, ())
    with pytest.raises(ValueError, match="time_buckets: 64, but the sequence 'history' has no times"):
        HSTU(HSTU.Config(time_buckets=64), inputs)


@pytest.mark.parametrize("summary", ["mean", "last"])
def test_flops_are_those_of_the_docstring(summary: str) -> None:
    batch, t, dim, heads, a, v = 3, 40, 6, 2, 5, 7
    config = HSTU.Config(layers=2, heads=heads, attention_dim=a, linear_dim=v, summary=summary, append_target=False)
    module = build(config, dim, longest=50).float()
    sequence = JaggedSequence(torch.zeros(batch * t, dim), t * torch.arange(batch + 1), 50)
    context_BND = torch.zeros(batch, len(CONTEXT), dim)
    attention, projections, output = 2 * t * t * heads * (a + v), 4 * t * dim * heads * (a + v), 2 * t * dim * heads * v
    full = attention + projections + output
    last = full if summary == "mean" else attention // t + projections + output // t
    assert count_flops(lambda: module(sequence, context_BND)) == batch * (full + last)


def test_a_history_of_thousands_beside_short_ones() -> None:
    """Short histories are not padded to the long one: the whole costs what the parts cost."""
    module = build(HSTU.Config(layers=1, summary="mean"), 4, longest=2000)
    examples = random_examples(65, len(CONTEXT), 4, {"history": [2000, *[5] * 64]}, max_length=2000)

    def flops(rows: list[int]) -> int:
        piece = examples.take(rows)
        return count_flops(lambda: module(piece.sequences()["history"], piece.tokens_BND))

    whole, long, short = flops(list(range(65))), flops([0]), flops(list(range(1, 65)))
    assert whole == long + short


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"position_buckets": -1}, {"divisor": 3}, {"summary": "newest"}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        HSTU.Config(**wrong)


def test_pooling_needs_heads_that_divide_the_width() -> None:
    with pytest.raises(ValueError, match="3 heads do not divide a width of 4"):
        build(HSTU.Config(heads=3, summary="target"), 4)
