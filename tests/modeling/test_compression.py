"""Vectors of a model, compressed for its students: by the formula, close to the best there is, and beside the model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm.modeling.compression import (
    RECONSTRUCTION,
    EmbeddingCompressor,
    Examples,
    StateCompressor,
    previous_examples,
)
from exfm.modeling.cost import flops_by_section, parameters_by_section
from exfm.modeling.labels import Labels
from exfm.modeling.ranking_model import RankingModel
from exfm.parallel import CpuTrunkRunner
from tests.modeling.cases import random_batch, table_weights
from tests.modeling.test_ranking_model import SCHEMA, build

READS = {"user": {"from": "representation"}, "city": {"from": "layers.0"}, "item": {"from": "layers.1"}}
BACKBONES = ["wukong", "dcn_v2", "dhen", "gem", "interformer"]
EXAMPLES = 1_100


def some_examples(size: int = 5) -> Examples:
    previous_B = torch.tensor([-1, 0, -1, 2, 1])
    targets = {"buy": torch.rand(size)}
    return Examples(targets, {"user": previous_B}, {"item": torch.randn(size, 4), "user": torch.randn(size, 4)})


def test_the_loss_of_an_embedding_is_that_of_an_autoencoder_that_explains() -> None:
    torch.manual_seed(0)
    module = EmbeddingCompressor("layer", 6, 3, ("click", "buy"))
    earlier_BR, vector_BR, examples = torch.randn(50, 6) * 3 + 1, torch.randn(5, 6), some_examples()
    module.loss({"layer": earlier_BR}, Examples({}, {}, {}))
    standard_BR = (vector_BR - earlier_BR.mean(dim=0)) / earlier_BR.std(dim=0, correction=0)
    code_BK = standard_BR @ module.encoder.weight.T + module.encoder.bias
    torch.testing.assert_close(module({"layer": vector_BR}), code_BK, rtol=1e-4, atol=1e-5)
    decoded_BR = code_BK @ module.decoder.weight.T + module.decoder.bias
    logit_B = code_BK @ module.linear.weight[1] + module.linear.bias[1]
    expected = ((decoded_BR - standard_BR) ** 2).mean()
    expected = expected + binary_cross_entropy_with_logits(logit_B, examples.targets["buy"])
    torch.testing.assert_close(module.loss({"layer": vector_BR}, examples), expected, rtol=1e-4, atol=1e-5)


def test_the_loss_of_a_state_is_how_it_explains_the_next_example() -> None:
    torch.manual_seed(0)
    module = StateCompressor("user", ["item"], 4, "layer", 6, 3, ("click", "buy"))
    vector_BR, examples = torch.randn(5, 6), some_examples()
    code_BK = (
        vector_BR.clamp(-10, 10) @ module.encoder.weight.T + module.encoder.bias
    )  # nothing standardises the first batch
    torch.testing.assert_close(module({"layer": vector_BR}), code_BK, rtol=1e-4, atol=1e-5)
    error = (code_BK @ module.decoder.weight.T + module.decoder.bias - vector_BR).square().mean()
    other_BK = module.networks[0](examples.tokens["item"])
    expected = RECONSTRUCTION * error
    for now, before in ((1, 0), (3, 2), (4, 1)):
        logit = module.linear(code_BK[before])[1] + module.other_linear[0](other_BK[now])[1]
        logit = logit + (module.product_TK[1] * code_BK[before] * other_BK[now]).sum()
        expected = expected + binary_cross_entropy_with_logits(logit, examples.targets["buy"][now]) / 5
    torch.testing.assert_close(module.loss({"layer": vector_BR}, examples), expected, rtol=1e-4, atol=1e-5)


def test_codes_keep_nearly_what_the_best_projection_keeps() -> None:
    """Principal components of 20 columns that five hidden numbers move, and noise."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 20, generator=generator)
    vector_BR = torch.randn(60_000, 5, generator=generator) @ mixing + 0.3 * torch.randn(
        60_000, 20, generator=generator
    )
    torch.manual_seed(0)
    module, nothing = EmbeddingCompressor("layer", 20, 5, ("click",)), Examples({}, {}, {})
    optimizer = torch.optim.Adam(module.parameters(), lr=0.004)
    for batch_BR in torch.split(vector_BR, 100):
        optimizer.zero_grad()
        module.loss({"layer": batch_BR}, nothing).backward()
        optimizer.step()
    standard_BR = (vector_BR - vector_BR.mean(dim=0)) / vector_BR.std(dim=0)
    *_, directions_RR = torch.linalg.svd(standard_BR, full_matrices=False)
    best_BR = standard_BR @ directions_RR[:5].T @ directions_RR[:5]
    best = (best_BR - standard_BR).square().mean().item()
    assert best < module.loss({"layer": vector_BR}, nothing).item() < 1.25 * best


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 2), st.integers(-1, 2)), max_size=12), st.randoms())
def test_the_previous_example_is_the_latest_of_the_same_id(rows: list[tuple[int, int, int]], random: Any) -> None:
    """Whatever the order of the rows: those of several processes are concatenated."""
    numbered = [(time, number, *ids) for number, (time, *ids) in enumerate(rows)]
    random.shuffle(numbered)
    table = torch.tensor(numbered, dtype=torch.int64).view(-1, 4)
    for entity, previous_B in enumerate(previous_examples(table)):
        for row, previous in zip(numbered, previous_B.tolist(), strict=True):
            earlier = [other for other in numbered if other[:2] < row[:2] and other[2 + entity] == row[2 + entity] >= 0]
            assert previous == (numbered.index(max(earlier)) if earlier else -1)


def learned(backbone: str, threads: int, supervision: dict[str, Any]) -> tuple[RankingModel, dict[str, Tensor], Any]:
    """Returns a model after a step, its gradients and tables, and its forward pass."""
    model = build({"backbone": {"name": backbone}, "supervision": supervision})
    with CpuTrunkRunner(threads).training_step(EXAMPLES) as run_trunk:
        output = model(model.narrow(random_batch(SCHEMA, EXAMPLES)), run_trunk)
    labels = {task: torch.ones(EXAMPLES) for task in model.tasks}
    losses = [logit.square().mean() for logit in output.logits.values()] + model.state_losses(output, Labels(labels))
    torch.stack(losses).sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return model, gradients | table_weights(model), output


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_model_learns_to_the_bit_as_if_nothing_were_read(backbone: str, threads: int) -> None:
    reads = {"states": READS, "state_dim": 4, "embedding": "int8", "embedding_dim": 5}
    _, expected, untouched = learned(backbone, threads, {})
    _, steps, output = learned(backbone, threads, reads)
    for task, logit in untouched.logits.items():
        assert torch.equal(output.logits[task], logit), task
    for name, value in expected.items():
        assert torch.equal(steps[name], value), name
    assert all(name.startswith("read_states.") for name in steps.keys() - expected.keys())
    assert output.embedding_BE.shape == (EXAMPLES, 5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_layers_of_threads_and_micro_batches_are_those_of_the_whole(backbone: str) -> None:
    whole = build({"backbone": {"name": backbone}})
    expected: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        expected[name] = (output[0] if isinstance(output, tuple) else output).flatten(1)

    for name in ("layers.0", "layers.1"):
        whole.backbone.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: keep(name, output))
    with torch.no_grad():
        whole(whole.narrow(random_batch(SCHEMA, EXAMPLES)))
    for threads in (1, 2):
        _, _, output = learned(backbone, threads, {"states": READS, "state_dim": 4})
        assert output.layers.keys() == expected.keys()
        for name, layer_BL in expected.items():
            torch.testing.assert_close(output.layers[name], layer_BL, rtol=1e-4, atol=1e-5, msg=name)


def test_the_cost_of_states_is_that_of_all_that_makes_them() -> None:
    supervision = {"states": {**READS, "tags": ["tags"]}, "state_dim": 4, "embedding": "int8", "embedding_dim": 5}
    model = build({"backbone": {"name": "wukong"}, "supervision": supervision})
    without = build({"backbone": {"name": "wukong"}, "supervision": {"states": {"tags": ["tags"]}, "state_dim": 4}})
    batch = model.narrow(random_batch(SCHEMA, 16))
    widths = [*model.backbone.layer_dims.values()]
    code = 2 * (sum(widths) * 4 + model.backbone.output_dim * (4 + 5))
    flops = [flops_by_section(each, batch)["states"] for each in (model, without)]
    assert flops[0] - flops[1] == code
    parameters = [parameters_by_section(each) for each in (model, without)]
    assert parameters[0]["states"] > parameters[1]["states"] > 0
    assert sum(parameters[0].values()) == model.parameter_counts()["dense"]
