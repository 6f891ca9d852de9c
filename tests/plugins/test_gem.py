"""`gem` against a second formulation, one example, token and event at a time, and the tests of every backbone.

The nested encoder and interaction have separate tests; here they are called example by example.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
from exfm.components import BackboneInputs, JaggedSequence, SequenceShape
from exfm.testing import BackboneTests
from exfm_plugins.backbones.gem.blocks import DomainGate
from exfm_plugins.backbones.gem.model import GEM
from tests.plugins.checks import Net, gradient

TOKENS = ("user", "surface", "item", "hour")
SMALL = {"interaction": {"name": "dlrm", "hidden": [5]}, "encoder": {"name": "din", "hidden": [3]}}


def linear(x: Tensor, net: Net) -> Tensor:
    return net.weight @ x + (0 if net.bias is None else net.bias)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def normalised(x: Tensor, net: Net) -> Tensor:
    if not isinstance(net, nn.LayerNorm):
        return x / (x.pow(2).mean() + 1e-6).sqrt()
    centred = x - x.mean()
    return centred / (centred.pow(2).mean() + 1e-5).sqrt() * net.weight + net.bias


def gated(x: Tensor, net: Net) -> Tensor:
    return sigmoid(linear(x, net.linear)) * x


def attended(x: Tensor, over: list[Tensor], net: Net) -> Tensor:
    query = linear(x, net.query)
    pairs = [linear(other, net.key_value).chunk(2) for other in over]
    parts = []
    for columns in torch.arange(len(x)).chunk(net.heads):
        scores = torch.stack([query[columns] @ key[columns] / sqrt(len(columns)) for key, _ in pairs])
        parts.append(sum(p * value[columns] for p, (_, value) in zip(scores.softmax(0), pairs, strict=True)))
    return linear(torch.cat(parts), net.out)


def history_by_hand(
    tokens: list[Tensor], events: list[Tensor], net: Net, candidate: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    compressed = []
    for row in net.compression.weight:
        compressed.append(gated(sum(w * token for w, token in zip(row, tokens, strict=True)), net.compressed_gate))
    scale, shift = linear(torch.cat(compressed), net.ffn.scale_shift).chunk(2)
    refined = []
    for event in events:
        hidden = (1 + scale) * linear(normalised(event, net.ffn.norm), net.ffn.first) + shift
        refined.append(event + linear(hidden * sigmoid(hidden), net.ffn.second))
    values = torch.stack(refined) if refined else tokens[0].new_zeros(0, len(tokens[0]))
    alone = JaggedSequence(values, torch.tensor([0, len(refined)]), 50)
    context = torch.stack([*compressed, *candidate])
    return [gated(token, net.summary_gate) for token in net.encoder(alone, context[None])[0]], refined


def layer_by_hand(
    tokens: list[Tensor], earlier: list[Tensor], sequences: list[list[Tensor]], net: Net, candidate: list[Tensor]
) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
    summaries, refined = [], []
    for history, events in zip(net.histories, sequences, strict=True):
        summary, events = history_by_hand(tokens, events, history, candidate)
        summaries += summary
        refined.append(events)
    mixed = net.interaction(torch.stack([*tokens, *summaries])[None], {})[0]
    updates = linear(mixed, net.expansion).chunk(len(tokens))
    tokens = [normalised(token + update, net.norm) for token, update in zip(tokens, updates, strict=True)]
    if net.cross_layer is not None:
        tokens = [normalised(x + attended(x, earlier, net.cross_layer), net.cross_layer_norm) for x in tokens]
    return tokens, summaries, refined


def gate_by_hand(x: Tensor, domain: Tensor, net: Net) -> Tensor:
    hidden = linear(torch.cat([domain, x]), net.mlp[0]).clamp(min=0)
    return 2 * sigmoid(linear(hidden, net.mlp[2])) * x


def by_hand(module: Net, tokens_BND: Tensor, sequences: list[list[Tensor]]) -> Tensor:
    """``sequences``: for each sequence, the events of each example."""
    rows = []
    for example, tokens_ND in enumerate(tokens_BND):
        if module.config.input_norm == "layer_norm":
            tokens_ND = normalised(tokens_ND.flatten(), module.input_norm).view_as(tokens_ND)
        tokens = [*tokens_ND]
        if module.domain is not None:
            domain = tokens[module.domain]
            tokens = [*gate_by_hand(torch.cat(tokens), domain, module.token_gate).chunk(len(tokens))]
        histories = [[*events[example]] for events in sequences]
        earlier = tokens
        target_indices = module.inputs.sequences[0].targets if histories and module.config.target == "item" else ()
        candidate = [tokens[position] for position in target_indices]
        for layer in module.layers:
            tokens, summaries, histories = layer_by_hand(tokens, earlier, histories, layer, candidate)
            earlier = earlier + tokens
        x = torch.cat([*tokens, *summaries])
        for layer in list(module.head)[::2]:
            x = linear(x, layer)
            x = x * sigmoid(x)
        rows.append(x if module.domain is None else gate_by_hand(x, domain, module.representation_gate))
    return torch.stack(rows)


def build(
    config: dict[str, Any],
    tokens: int,
    dim: int,
    sequences: tuple[str, ...] = ("clicks", "buys"),
    targets: tuple[int, ...] = (),
) -> GEM:
    torch.manual_seed(0)
    shapes = tuple(SequenceShape(name, 50, targets) for name in sequences)
    module = GEM(GEM.Config.model_validate(SMALL | config), BackboneInputs(TOKENS[:tokens], dim, shapes)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def jagged(examples: list[Tensor]) -> JaggedSequence:
    offsets = torch.tensor([0, *(len(example) for example in examples)]).cumsum(0)
    return JaggedSequence(torch.cat(examples), offsets, 50)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=4),
    tokens=st.integers(2, 4),
    heads=st.integers(1, 2),
    layers=st.integers(1, 3),
    compressed=st.integers(1, 3),
    ffn=st.integers(1, 2),
    domain=st.sampled_from(["", "user", "surface"]),
    head=st.lists(st.integers(1, 5), min_size=1, max_size=2),
    norm=st.sampled_from(["layer_norm", "rms_norm"]),
    encoder=st.sampled_from([{"name": "din", "hidden": [3]}, {"name": "mean"}]),
    targets=st.sampled_from([(), (0,), (1, 0)]),
    target=st.sampled_from(["item", "compressed"]),
    input_norm=st.sampled_from(["none", "layer_norm"]),
)
def test_equals_the_equations(
    lengths: list[tuple[int, int]],
    tokens: int,
    heads: int,
    layers: int,
    compressed: int,
    ffn: int,
    domain: str,
    head: list[int],
    norm: str,
    encoder: dict[str, Any],
    targets: tuple[int, ...],
    target: str,
    input_norm: str,
) -> None:
    config = {
        "layers": layers,
        "heads": heads,
        "compressed": compressed,
        "ffn": ffn,
        "domain": domain,
        "domain_hidden": 3,
        "head_hidden": head,
        "norm": norm,
        "encoder": encoder,
        "target": target,
        "input_norm": input_norm,
    }
    module = build(config, tokens, 4, targets=targets)
    tokens_BND = random(len(lengths), tokens, 4)
    clicks = [random(length, 4, seed=position + 10) for position, (length, _) in enumerate(lengths)]
    buys = [random(length, 4, seed=position + 20) for position, (_, length) in enumerate(lengths)]
    actual = module(tokens_BND, {"buys": jagged(buys), "clicks": jagged(clicks)})
    torch.testing.assert_close(actual, by_hand(module, tokens_BND, [clicks, buys]), rtol=1e-9, atol=1e-9)


class TestGEM(BackboneTests):
    component = GEM
    plugin = exfm_plugins.backbones
    configs = (
        {**SMALL, "domain": "user", "norm": "rms_norm"},
        {
            **SMALL,
            "layers": 1,
            "input_norm": "layer_norm",
            "encoder": {"name": "pyramid", "queries": [9], "strides": [3]},
        },
    )


def test_by_default_wukong_mixes_what_pyramids_summarise() -> None:
    config = GEM.Config()
    assert (config.encoder.name, config.interaction.name) == ("pyramid", "wukong")
    assert config.interaction.config.cross_layer_attention
    module = GEM(config, BackboneInputs(TOKENS, 8, (SequenceShape("clicks", 50),)))
    clicks = jagged([torch.randn(length, 8) for length in (3, 0, 50)])
    assert module(torch.randn(3, 4, 8), {"clicks": clicks}).isfinite().all()
    assert len(module.blocks()) == 2


def test_without_sequences_it_is_a_network_of_tokens() -> None:
    module = build({"domain": "item"}, 3, 4, sequences=())
    tokens_BND = random(3, 3, 4)
    torch.testing.assert_close(module(tokens_BND, {}), by_hand(module, tokens_BND, []), rtol=1e-9, atol=1e-9)


def test_the_encoder_compares_events_with_the_candidate_item() -> None:
    config = {"compressed": 3}
    second: Net = build(config, 4, 4, ("clicks",), targets=(1, 2)).layers[1]
    of_item = second.histories[0].encoder.inputs
    assert of_item.context[3:] == ("candidate:0", "candidate:1")
    assert of_item.targets == (3, 4)
    second = build(config, 4, 4, ("clicks",)).layers[1]
    without = second.histories[0].encoder.inputs
    assert without.context == ("compressed:0", "compressed:1", "compressed:2")
    assert without.targets == (0, 1, 2)


def test_an_event_reaches_every_layer() -> None:
    """The whole history is there in each layer: the last layer's summary alone still hears its oldest event."""
    module = build({"layers": 2, "head_hidden": [3]}, 3, 4, sequences=("clicks",))
    events = random(30, 4, seed=1).requires_grad_()
    last: Net = module.layers[-1]
    seen: list[Tensor] = []
    last.histories[0].register_forward_hook(lambda _, inputs, output: seen.append(output[0]))
    module(random(1, 3, 4), {"clicks": jagged([events])})
    (gradient_ED,) = torch.autograd.grad(seen[0].sum(), events)
    assert gradient_ED.abs().amax(1).min() > 0


def test_no_gradient_goes_through_a_domains_gate_to_what_it_gates() -> None:
    gate = DomainGate(4, 6, 3).double()
    values, domain = random(2, 6).requires_grad_(), random(2, 4, seed=1).requires_grad_()
    gate(values, domain).sum().backward()
    opened = 2 * sigmoid(gate.mlp(torch.cat([domain, values], dim=1)))
    torch.testing.assert_close(values.grad, opened.detach())
    assert gradient(domain).abs().min() > 0


def test_a_domain_changes_the_prediction_of_equal_features() -> None:
    """Through the gates alone: their outputs differ between two surfaces, and without a domain nothing is gated."""
    module = build({"domain": "surface", "layers": 1}, 3, 4, sequences=())
    tokens_BND = random(1, 3, 4).expand(2, -1, -1)
    surfaces_BD = random(2, 4, seed=3)
    gates = module.token_gate(tokens_BND.flatten(1), surfaces_BD) / tokens_BND.flatten(1)
    assert (gates[0] - gates[1]).abs().max() > 1e-3
    assert not any(isinstance(piece, DomainGate) for piece in build({}, 3, 4).modules())


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        ("surfaec", r"domain 'surfaec' is not among .* Did you mean 'surface'\?"),
        ("x", "Allowed: .*item, .*surface, .*user"),
    ],
)
def test_an_unknown_domain_is_an_error(domain: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build({"domain": domain}, 3, 4)


@pytest.mark.parametrize("wrong", [{"layers": 0}, {"head_hidden": ()}, {"domains": "user"}, {"norm": "batch_norm"}])
def test_wrong_configs_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GEM.Config.model_validate(SMALL | wrong)
