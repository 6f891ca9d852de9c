"""`interformer` against the published equations, example by example and event by event, and the tests of a backbone."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import cos, sin, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
from exfm.components import BackboneInputs, SequenceShape
from exfm.layers import count_flops
from exfm.testing import BackboneTests, Examples, random_examples
from exfm_plugins.backbones.interformer.layer import InterFormerLayer
from exfm_plugins.backbones.interformer.model import InterFormer
from tests.plugins.checks import Net

SMALL = {"name": "wukong", "layers": 1, "num_fmb_tokens": 2, "num_lcb_tokens": 1, "k": 2, "fmb_hidden": [3]}


class TestInterFormer(BackboneTests):
    component = InterFormer
    plugin = exfm_plugins.backbones


class TestInterFormerOnOneSequence(BackboneTests):
    component = InterFormer
    plugin = exfm_plugins.backbones
    sequences = ("items",)
    configs = (
        {
            "layers": 1,
            "queries": [20],
            "gate": "printed",
            "residual": "none",
            "event_norm": "layer_norm",
            "mask": False,
            "input_norm": "layer_norm",
            "head_input": "tokens",
            "num_cls": 1,
            "num_recent": 60,
            "interaction": {"name": "dlrm"},
            "interaction_hidden": [12],
        },
    )


def logistic(x: Tensor) -> Tensor:
    """By tanh: exp(-x) is infinite for an x far below zero, and its gradient then no number."""
    return (1 + (x / 2).tanh()) / 2


def gate(x_ND: Tensor, net: Net, form: str) -> Tensor:
    mapped_ND = x_ND @ net.linear.weight.T + net.linear.bias
    return logistic(x_ND * mapped_ND) if form == "printed" else x_ND * logistic(mapped_ND)


def perceptron(x: Tensor, layers: Net, *, activate_last: bool = False) -> Tensor:
    linears = list(layers)[::2]
    for linear in linears:
        x = linear.weight @ x + linear.bias
        if activate_last or linear is not linears[-1]:
            x = x * logistic(x)
    return x


def normalised(x: Tensor, net: Net) -> Tensor:
    if isinstance(net, nn.Identity):
        return x
    if not isinstance(net, nn.LayerNorm):
        return x / (x.pow(2).mean() + 1e-6).sqrt()
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + 1e-5).sqrt() * net.weight + net.bias


def turned(x: Tensor, position: int, heads: int) -> Tensor:
    """Rotary embedding of one row: in each head, columns p and p + P are turned by ``position / 10000^(p / P)``."""
    pairs = len(x) // heads // 2
    columns = list(x)
    for head in range(heads):
        for pair in range(pairs):
            a = head * 2 * pairs + pair
            angle = position * 10_000 ** (-pair / pairs)
            columns[a] = x[a] * cos(angle) - x[a + pairs] * sin(angle)
            columns[a + pairs] = x[a] * sin(angle) + x[a + pairs] * cos(angle)
    return torch.stack(columns)


def softmax_mix(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    parts = []
    for columns in torch.arange(len(query)).chunk(heads):
        scores = torch.stack([query[columns] @ key[columns] / sqrt(len(columns)) for key in keys])
        parts.append(sum(weight * value[columns] for weight, value in zip(scores.softmax(0), values, strict=True)))
    return torch.cat(parts)


def linear(x: Tensor, net: Net) -> Tensor:
    return net.weight @ x + net.bias


def met(x_ND: Tensor, histories: list[Tensor], module: Net) -> list[Tensor]:
    """``e + W (e * t)`` event by event, then t, or zeros where only another sequence has a candidate; normalised."""
    places = [shape.targets if module.config.meets_candidate else () for shape in module.inputs.sequences]
    mixed = []
    for history, of_one, meeting, norm in zip(
        histories, places, module.meeting.meetings, module.meeting.norms, strict=True
    ):
        t = sum((x_ND[position] for position in of_one), torch.zeros_like(x_ND[0]))
        events = [e + meeting.linear.weight @ (e * t) if of_one else e for e in history]
        events += [t] if any(places) else []
        mixed.append(torch.stack([normalised(e, norm) for e in events]) if events else history)
    return mixed


def masked(histories: list[Tensor], module: Net) -> Tensor:
    """MaskNet over the events of all sequences, the newest beside the newest."""
    merged: list[Tensor] = []
    for back in range(max(len(history) for history in histories)):
        missing = torch.zeros_like(module.head[0].weight[0, : module.inputs.dim])
        s = torch.cat([history[-1 - back] if back < len(history) else missing for history in histories])
        filtered = s * perceptron(s, module.mask.mask) if module.config.mask else s
        merged.insert(0, linear(filtered, module.mask.compression))
    return torch.stack(merged) if merged else histories[0]


def summarised(s_TD: Tensor, net: Net, config: InterFormer.Config) -> Tensor:
    """``Gate([CLS || PMA || recent])`` of CLS tokens and events, oldest first."""
    pairs = [linear(s, net.pma.key_value).chunk(2) for s in s_TD]
    keys, values = [key for key, _ in pairs], [value for _, value in pairs]
    pma = [linear(softmax_mix(query, keys, values, config.heads), net.pma.out) for query in net.pma.query_KD]
    zeros = [torch.zeros_like(s_TD[0])] * config.num_recent
    recent = [*reversed(s_TD[config.num_cls :]), *zeros][: config.num_recent]
    return gate(torch.stack([*s_TD[: config.num_cls], *pma, *recent]), net.gate, config.gate)


def sequence_by_the_paper(
    s_TD: Tensor, x_sum_KD: Tensor, net: Net, config: InterFormer.Config, queries: int | None
) -> Tensor:
    """``MHA(PFFN(X_sum, S))`` with the matrix of the example written out."""
    w_DD = x_sum_KD.T @ net.pffn.weights.weight
    p = [w_DD @ s + (0 if net.norm is None else s) for s in s_TD]
    pairs = [linear(row, net.key_value).chunk(2) for row in p]
    keys = [turned(key, position, config.heads) for position, (key, _) in enumerate(pairs)]
    kept = list(range(len(p)))
    if queries is not None:
        kept = [*range(config.num_cls), *list(range(config.num_cls, len(p)))[-queries:]]
    rows = []
    for position in kept:
        query = turned(linear(p[position], net.query), position, config.heads)
        row = linear(softmax_mix(query, keys, [value for _, value in pairs], config.heads), net.out)
        rows.append(row if net.norm is None else normalised(p[position] + row, net.norm))
    return torch.stack(rows)


def interaction_by_the_paper(x_ND: Tensor, s_sum: Tensor, net: Net) -> tuple[Tensor, Tensor]:
    r = net.interaction(torch.cat([x_ND, s_sum]).unsqueeze(0), {})[0]
    mixed_ND = perceptron(r, net.mlp).view_as(x_ND)
    if net.norm is None:
        return mixed_ND, r
    return torch.stack([normalised(x + mixed, net.norm) for x, mixed in zip(x_ND, mixed_ND, strict=True)]), r


def example_by_the_paper(module: Net, x_ND: Tensor, histories: list[Tensor]) -> Tensor:
    config = module.config
    x_ND = normalised(x_ND.flatten(), module.input_norm).view_as(x_ND)
    s_TD = masked(met(x_ND, histories, module), module) if histories else None
    for depth, layer in enumerate(module.layers):
        if s_TD is None:
            x_ND, r = interaction_by_the_paper(x_ND, x_ND[:0], layer)
            continue
        x_sum_KD = gate(layer.token_summary.compression.weight @ x_ND, layer.token_summary.gate, config.gate)
        s_TD = s_TD if depth else torch.cat([x_sum_KD, s_TD])
        s_sum = summarised(s_TD, layer.sequence_summary, config)
        x_ND, r = interaction_by_the_paper(x_ND, s_sum, layer.interaction_arch)
        queries = config.queries[depth] if config.queries else None
        s_TD = sequence_by_the_paper(s_TD, x_sum_KD, layer.sequence_arch, config, queries)
    summaries = [x_ND]
    if config.head_input != "tokens":
        summaries = [gate(module.token_summary.compression.weight @ x_ND, module.token_summary.gate, config.gate)]
    if s_TD is not None:
        summaries.append(summarised(s_TD, module.sequence_summary, config))
    read = torch.cat(summaries).flatten()
    return perceptron(
        torch.cat([read, r]) if config.head_input == "interaction" else read, module.head, activate_last=True
    )


def by_the_paper(module: Net, examples: Examples) -> Tensor:
    return torch.stack(
        [
            example_by_the_paper(module, x_ND, [histories[row] for histories in examples.events.values()])
            for row, x_ND in enumerate(examples.tokens_BND)
        ]
    )


def build(
    config: InterFormer.Config, tokens: int, dim: int, sequences: tuple[str, ...] = (), targets: tuple[int, ...] = ()
) -> InterFormer:
    names = tuple(f"token{position}" for position in range(tokens))
    shapes = tuple(SequenceShape(name, 50, targets) for name in sequences)
    torch.manual_seed(0)
    module = InterFormer(config, BackboneInputs(names, dim, shapes)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


@given(
    data=st.data(),
    batch=st.integers(1, 3),
    tokens=st.integers(1, 4),
    dim=st.sampled_from([4, 8]),
    sequences=st.integers(0, 3),
    layers=st.integers(1, 3),
    summary=st.tuples(st.integers(1, 3), st.integers(1, 2), st.integers(1, 3)),
    heads=st.integers(1, 2),
    gate=st.sampled_from(["multiplicative", "printed"]),
    residual=st.sampled_from(["layer_norm", "rms_norm", "none"]),
    hidden=st.sampled_from([(), (5,)]),
    meets=st.booleans(),
    event_norm=st.sampled_from(["layer_norm", "rms_norm", "none"]),
    mask=st.booleans(),
    input_norm=st.sampled_from(["none", "layer_norm"]),
    head_input=st.sampled_from(["summaries", "tokens", "interaction"]),
)
def test_equals_the_published_equations_and_their_gradients(
    data: st.DataObject,
    batch: int,
    tokens: int,
    dim: int,
    sequences: int,
    layers: int,
    summary: tuple[int, int, int],
    heads: int,
    gate: str,
    residual: str,
    hidden: tuple[int, ...],
    meets: bool,
    event_norm: str,
    mask: bool,
    input_norm: str,
    head_input: str,
) -> None:
    truncated = st.lists(st.integers(1, 6), min_size=layers, max_size=layers).map(tuple)
    config = InterFormer.Config(
        layers=layers,
        interaction=SMALL,
        interaction_hidden=hidden,
        num_cls=summary[0],
        num_pma=summary[1],
        num_recent=summary[2],
        heads=heads,
        queries=data.draw(st.one_of(st.just(()), truncated)),
        gate=gate,
        residual=residual,
        meets_candidate=meets,
        event_norm=event_norm,
        mask=mask,
        input_norm=input_norm,
        head_input=head_input,
        head_hidden=(6, 4),
    )
    lengths = {
        f"s{i}": data.draw(st.lists(st.integers(0, 8), min_size=batch, max_size=batch)) for i in range(sequences)
    }
    targets = tuple(data.draw(st.sets(st.integers(0, tokens - 1), max_size=2)))
    module = build(config, tokens, dim, tuple(lengths), targets)
    examples = random_examples(batch, tokens, dim, lengths).requires_grad()
    expected = by_the_paper(module, examples)
    actual = module(examples.tokens_BND, examples.sequences())
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    leaves = [examples.tokens_BND, *(first for of_each in examples.events.values() for first in of_each)]
    leaves += module.parameters()
    slopes = torch.randn(actual.shape, generator=torch.Generator().manual_seed(3), dtype=actual.dtype)
    gradients = [
        torch.autograd.grad(output, leaves, slopes, allow_unused=True, materialize_grads=True)
        for output in (actual, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-9)


def test_without_sequences_nothing_is_idle() -> None:
    module = build(InterFormer.Config(), 3, 8)
    module(torch.randn(5, 3, 8, dtype=torch.float64), {}).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


def test_events_meet_the_candidate_item() -> None:
    """Two candidates alike in everything but the product with an event are told apart by the events that enter."""
    module = build(InterFormer.Config(), 2, 4, ("items",), targets=(1,))
    examples = random_examples(1, 2, 4, {"items": [3]})
    events, tokens_BND = examples.sequences()["items"], examples.tokens_BND
    (same,) = module.meeting([events], torch.zeros_like(tokens_BND))
    assert torch.equal(same.values_ED[:3], events.values_ED)
    (other,) = module.meeting([events], tokens_BND)
    assert (other.values_ED[:3] - events.values_ED).abs().amin(1).gt(0).all()
    assert torch.equal(other.values_ED[3], tokens_BND[0, 1])


def test_no_event_is_louder_than_the_others() -> None:
    """Embeddings of rare items may be a hundred times as large as those of others: a norm takes their size out."""
    module = build(InterFormer.Config(event_norm="layer_norm"), 2, 4, ("items",), targets=(1,))
    examples = random_examples(1, 2, 4, {"items": [3]})
    events = examples.sequences()["items"]
    louder = events.with_values(events.values_ED * torch.tensor([[1.0], [1.0], [100.0]], dtype=torch.float64))
    (first,), (second,) = (module.meeting([each], examples.tokens_BND) for each in (events, louder))
    torch.testing.assert_close(first.values_ED, second.values_ED, rtol=1e-3, atol=1e-3)


def test_events_stay_beside_those_of_another_sequence_that_has_no_candidate() -> None:
    shapes = (SequenceShape("items", 50, (1,)), SequenceShape("shops", 50))
    module = InterFormer(InterFormer.Config(), BackboneInputs(("user", "item"), 4, shapes)).double()
    examples = random_examples(1, 2, 4, {"items": [3], "shops": [2]})
    items, shops = module.meeting(list(examples.sequences().values()), examples.tokens_BND)
    assert (items.lengths.tolist(), shops.lengths.tolist()) == ([4], [3])
    assert not shops.values_ED[-1].any()


def test_an_event_that_is_not_kept_is_still_heard() -> None:
    """Truncation drops queries, not keys: the oldest of 40 events reaches a layer that keeps one."""
    config = InterFormer.Config(layers=1, queries=(1,), num_recent=1)
    module = build(config, 2, 4, ("items",))
    examples = random_examples(1, 2, 4, {"items": [40]})
    other = Examples(
        examples.tokens_BND, {"items": [torch.cat([-events[:1], events[1:]]) for events in examples.events["items"]]}
    )
    layer = module.layers[0]
    (_, _, first), (_, _, second) = (
        layer(each.tokens_BND, module.mask([each.sequences()["items"]])) for each in (examples, other)
    )
    assert first.values_ED.shape == (config.num_cls + 1, 4)
    assert (first.values_ED[-1] - second.values_ED[-1]).abs().max() > 1e-6


def expected_flops(module: Net, n: int, events: int, dim: int) -> int:
    """The docstring's formula for one example, less the weighted sums of PFFN, which torch's counter does not know."""
    config, k = module.config, len(module.inputs.sequences)
    m, p = config.num_cls, config.num_pma
    met = sum(bool(shape.targets) for shape in module.inputs.sequences) if config.meets_candidate else 0
    total = 2 * met * events * dim**2
    events += met > 0
    s, t = m + p + config.num_recent, events + m
    total += (4 * k**2 * config.mask + 2 * k) * events * dim**2
    by_summary = config.head_input != "tokens"
    for depth in range(config.layers + 1):
        total += 2 * n * m * dim + 2 * m * dim**2 if by_summary or depth < config.layers else 0
        total += 4 * t * dim**2 + 4 * p * t * dim + (2 * p + 2 * s) * dim**2
        if depth == config.layers:
            break
        q = m + min(config.queries[depth] if config.queries else t, t - m)
        total += 4 * m * t * dim - 2 * m * t * dim
        total += 4 * t * dim**2 + 4 * q * dim**2 + 4 * q * t * dim
        layer = module.layers[depth]
        assert isinstance(layer, InterFormerLayer)
        interaction = layer.interaction_arch.interaction
        joined = torch.zeros(1, n + s, dim, dtype=torch.float64)
        total += count_flops(partial(interaction, joined, {}))
        total += 2 * interaction.output_dim * n * dim
        t = q
    widths = [((m if by_summary else n) + s) * dim, *config.head_hidden]
    if config.head_input == "interaction":
        widths[0] += interaction.output_dim
    return total + sum(2 * a * b for a, b in pairwise(widths))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layers": 3, "queries": (9, 5, 2), "num_cls": 2, "num_pma": 3, "heads": 1},
        {"head_input": "tokens", "mask": False},
        {"meets_candidate": False, "head_input": "interaction"},
    ],
)
@pytest.mark.parametrize("sequences", [("items",), ("items", "shops")])
def test_flops_are_as_documented(fields: dict[str, object], sequences: tuple[str, ...]) -> None:
    module = build(InterFormer.Config(**fields), 5, 8, sequences, targets=(1, 2))
    examples = random_examples(3, 5, 8, {name: [21] * 3 for name in sequences})
    counted = count_flops(lambda: module(examples.tokens_BND, examples.sequences()))
    assert counted == 3 * expected_flops(module, 5, 21, 8)


def test_the_interaction_is_told_what_its_tokens_are() -> None:
    config = InterFormer.Config(num_cls=1, num_pma=2, num_recent=1)
    inputs = BackboneInputs(("dense", "user"), 8, (SequenceShape("items", 50),))
    layer: Net = InterFormer(config, inputs).layers[1]
    interaction = layer.interaction_arch.interaction
    assert interaction.inputs == BackboneInputs(("dense", "user", "cls:0", "pma:0", "pma:1", "recent:0"), 8)


def test_heads_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"interformer: heads=3 do not divide the width of 8"):
        build(InterFormer.Config(heads=3), 2, 8, ("items",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": (4,)},
        {"gate": "x"},
        {"residual": "batch"},
        {"event_norm": "batch"},
        {"num_cls": 0},
        {"head_hidden": ()},
        {"pma": 2},
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        InterFormer.Config(**wrong)
