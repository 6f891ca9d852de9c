"""A whole ranking model: its names, its parameters, its bits, and each example for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

import exfm
from exfm.config.experiment import ModelConfig
from exfm.data.batch import Batch
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.modeling.ranking_model import RankingModel
from exfm_plugins.parallel.single.plan import Single
from tests.modeling.cases import EVERYTHING, random_batch, schema_of, table_weights

SCHEMA = schema_of(*EVERYTHING)
MODELS: dict[str, dict[str, Any]] = {
    "dlrm": {"backbone": {"name": "dlrm"}},
    "wukong+din": {
        "backbone": {"name": "wukong", "layers": 1},
        "sequence_encoder": {"name": "din"},
        "head_hidden": [6],
        "dense_tokens": 2,
    },
    "dlrm+mean": {"backbone": {"name": "dlrm"}, "sequence_encoder": {"name": "mean"}},
    "narrow": {"backbone": {"name": "dlrm"}, "features": ["age", "item", "history"], "tasks": ["buy"]},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(config: dict[str, Any], seed: int = 0, schema: exfm.schema.FeatureSchema = SCHEMA) -> RankingModel:
    typed = ModelConfig.model_validate({"embedding_dim": 8, "embedding_init": 0.2, **config})
    torch.manual_seed(seed)
    model = RankingModel(typed, schema, typed.tasks or schema.tasks)
    Single(Single.Config(device="cpu")).parallelize(model, TableOptimizer())
    return model


def logits(model: RankingModel, batch: Batch) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return dict(model(model.narrow(batch)).logits)


def train(model: RankingModel, steps: int) -> None:
    optimizer = torch.optim.Adam(model.dense_parameters(), lr=0.01)
    for seed in range(steps):
        batch = random_batch(SCHEMA, 8, seed)
        output = model(model.narrow(batch))
        losses = [
            torch.nn.functional.binary_cross_entropy_with_logits(logit, batch.labels[task])
            for task, logit in output.logits.items()
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        model.observe(model.narrow(batch))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_an_example_does_not_depend_on_its_neighbours(config: dict[str, Any]) -> None:
    model = build(config)
    train(model, 5)
    batch = random_batch(SCHEMA, 9, seed=100)
    together = logits(model, batch)
    assert together.keys() == set(config.get("tasks", ("click", "buy")))
    for index in range(9):
        for task, logit in logits(model, batch.select(torch.tensor([index]))).items():
            assert logit.shape == (1,)
            torch.testing.assert_close(logit, together[task][index : index + 1], rtol=1e-4, atol=1e-5)
    turned = logits(model, batch.select(torch.arange(9).flip(0)))
    for task, logit in turned.items():
        torch.testing.assert_close(logit.flip(0), together[task], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_equal_seeds_give_equal_bits_and_weights_can_be_put_back(config: dict[str, Any]) -> None:
    first, same, other = build(config), build(config), build(config, seed=1)
    for model in (first, same):
        train(model, 5)
    batch = random_batch(SCHEMA, 16, seed=100)
    expected = logits(first, batch)
    assert first.state_dict().keys() == same.state_dict().keys()
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in first.state_dict().items())
    assert not any(torch.equal(logit, expected[task]) for task, logit in logits(other, batch).items())
    other.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    assert all(torch.equal(logit, expected[task]) for task, logit in logits(other, batch).items())


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_gradients_reach_every_parameter(config: dict[str, Any]) -> None:
    model = build(config)
    batch = random_batch(SCHEMA, 64)
    before = {table: weight.clone() for table, weight in table_weights(model).items()}
    output = model(model.narrow(batch))
    torch.stack([logit.square().sum() for logit in output.logits.values()]).sum().backward()
    # The seed is fixed: a unit that is dead for a whole batch would show as a zero here, and none is.
    dense = {id(parameter) for parameter in model.dense_parameters()}
    missing = [name for name, p in model.named_parameters() if id(p) in dense and (p.grad is None or not p.grad.any())]
    assert not missing
    for table, weight in table_weights(model).items():
        assert (weight != before[table]).any(dim=1).all(), f"a row of {table} stayed as it was"


def test_parameters_are_counted_exactly() -> None:
    model = build(MODELS["dlrm"])
    assert model.parameter_counts()["sparse"] == (5 + 6 + 4 + 3) * 8
    assert model.parameter_counts()["dense"] == sum(parameter.numel() for parameter in model.dense_parameters())
    everything = {id(parameter) for parameter in model.parameters()}
    parts = [id(p) for p in [*model.table_parameters(), *model.dense_parameters()]]
    assert len(parts) == len(everything)
    assert set(parts) == everything
    narrow = build(MODELS["narrow"])
    assert narrow.parameter_counts()["sparse"] == (6 + 3) * 8
    hidden, numbers, tokens = 32, 2, 3
    dense_tokens = (1 + 1) * hidden + (hidden + 1) * 8
    head = narrow.backbone.output_dim + 1
    backbone = sum(parameter.numel() for parameter in narrow.backbone.parameters())
    assert narrow.parameter_counts()["dense"] == dense_tokens + (numbers + 1) * 8 + backbone + head
    assert len(narrow.featurizer.token_names) == tokens


def test_a_model_reads_its_own_features_only() -> None:
    model = build(MODELS["narrow"])
    batch = random_batch(SCHEMA, 6)
    narrowed = model.narrow(batch)
    assert narrowed.sparse.keys() == ["item"]
    assert set(narrowed.sequences) == {"history"}
    assert torch.equal(narrowed.dense_BF, batch.dense_BF[:, 1:])
    other = random_batch(SCHEMA, 6, seed=9)
    mixed = Batch(
        batch.example_id, batch.event_time_us, batch.group,
        torch.cat([other.dense_BF[:, :1], batch.dense_BF[:, 1:]], dim=1),
        batch.sparse, {"history": batch.sequences["history"], "clicks": other.sequences["clicks"]},
        batch.labels, batch.oracle,
    )  # fmt: skip
    assert torch.equal(logits(model, mixed)["buy"], logits(model, batch)["buy"])


@pytest.mark.parametrize("names", [("age",), ("history",), ("moods",), ("user",), ("tags", "clicks")], ids="+".join)
@pytest.mark.parametrize("encoder", [None, {"name": "mean"}, {"name": "din"}], ids=["averaged", "mean", "din"])
def test_models_without_features_of_some_kind(names: tuple[str, ...], encoder: dict[str, Any] | None) -> None:
    schema = schema_of(*names)
    model = build({"backbone": {"name": "dlrm"}, "sequence_encoder": encoder}, schema=schema)
    for size in (1, 5):
        for seed in range(6):
            output = model(model.narrow(random_batch(schema, size, seed)))
            assert all(logit.shape == (size,) and torch.isfinite(logit).all() for logit in output.logits.values())


def test_names_that_torch_uses_itself() -> None:
    features = [
        {"kind": "sequence", "name": "items", "max_length": 4, "fields": [{"name": "id", "rows": 6}]},
        {"kind": "categorical", "name": "type", "rows": 6},
    ]
    labels = [{"name": "pop"}, {"name": "update"}]
    schema = exfm.schema.FeatureSchema.model_validate({"features": features, "labels": labels})
    model = build(MODELS["wukong+din"], schema=schema)
    assert logits(model, random_batch(schema, 3)).keys() == {"pop", "update"}


def test_backbones_and_encoders_are_told_which_tokens_share_a_table_with_a_sequence() -> None:
    config = {"backbone": {"name": "interformer", "layers": 1}, "sequence_encoder": {"name": "din"}}
    model = build(config)
    names = model.featurizer.token_names
    targets = {shape.name: {names[index] for index in shape.targets} for shape in model.backbone.inputs.sequences}
    assert targets == {"history": {"item", "viewed"}, "clicks": {"item", "viewed"}, "moods": set()}
    modules: list[Any] = list(model.encoders.values())
    encoders = {encoder.inputs.sequence: encoder.inputs for encoder in modules}
    of_encoders = {name: {spec.context[index] for index in spec.targets} for name, spec in encoders.items()}
    assert of_encoders == targets
