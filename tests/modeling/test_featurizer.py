"""Tokens and events, forward and an optimizer step, against lookups in plain torch on the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import exfm
from exfm.data.batch import Batch
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.modeling.tokens import Featurizer
from exfm_plugins.parallel.single.plan import Single
from tests.modeling.cases import (
    EVERYTHING,
    mean,
    random_batch,
    reference_bags,
    reference_events,
    reference_step,
    schema_of,
    table_weights,
)

DIM, EPS = 8, 1e-6
SELECTIONS = [
    EVERYTHING,
    ("user", "item"),
    ("item", "history"),
    ("user", "clicks"),
    ("history", "clicks"),
    ("viewed", "tags", "city"),
    ("price",),
    ("history",),
    ("moods",),
    ("moods", "price"),
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def featurizer(
    schema: exfm.schema.FeatureSchema, raw: bool, dense_tokens: int = 1, optimizer: str = "sgd", lr: float = 0.5
) -> Featurizer:
    torch.manual_seed(0)
    module = Featurizer(schema, DIM, 0.3, dense_tokens, raw)
    plan = Single(Single.Config(device="cpu"))
    plan.parallelize(module, TableOptimizer.model_validate({"name": optimizer, "lr": lr, "eps": EPS}))
    return module


def reference(
    module: Featurizer, weights: dict[str, Tensor], batch: Batch, schema: exfm.schema.FeatureSchema
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Tokens (B, D) by name, without the dense ones, and histories' events, example by example."""
    tokens = reference_bags(weights, batch, schema)
    histories = {}
    for feature in schema.features:
        if isinstance(feature, exfm.schema.SequenceFeature):
            events = reference_events(weights, module.event_dense, batch, feature)
            if module.raw_sequences:
                histories[feature.name] = events
            else:
                # An empty history has no events to average; its numbers count as zeros.
                nothing = torch.zeros(DIM)
                if (child := f"sequence_{feature.name}") in module.event_dense:
                    nothing = module.event_dense[child].bias  # type: ignore[assignment]
                tokens[feature.name] = torch.stack([mean(event) if len(event) else nothing for event in events])
    return tokens, histories


def leaves(module: Featurizer) -> dict[str, Tensor]:
    """Copies of the tables that take gradients."""
    return {name: weight.detach().clone().requires_grad_() for name, weight in table_weights(module).items()}


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("names", SELECTIONS, ids="+".join)
@pytest.mark.parametrize("size", [1, 7])
def test_tokens_and_events(names: tuple[str, ...], raw: bool, size: int) -> None:
    schema = schema_of(*names)
    module = featurizer(schema, raw)
    for seed in range(4):
        batch = random_batch(schema, size, seed)
        tokens_BND, sequences = module(batch)
        tokens, histories = reference(module, table_weights(module), batch, schema)
        assert tokens_BND.shape == (size, len(module.token_names), DIM)
        for name, token_BD in zip(module.token_names, tokens_BND.unbind(dim=1), strict=True):
            if name != "dense":
                torch.testing.assert_close(token_BD, tokens.pop(name))
        assert not tokens
        assert sequences.keys() == histories.keys()
        for name, events in histories.items():
            torch.testing.assert_close(sequences[name].values_ED, torch.cat(events))
            assert sequences[name].lengths.tolist() == [len(event) for event in events]
            assert sequences[name].max_length == 4


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("names", [EVERYTHING, ("item", "history"), ("user", "tags", "city")], ids="+".join)
def test_a_step_moves_every_row_once_by_its_whole_gradient(names: tuple[str, ...], raw: bool, optimizer: str) -> None:
    schema = schema_of(*names)
    module = featurizer(schema, raw, optimizer=optimizer)
    batch = random_batch(schema, 16, seed=3)
    weights = leaves(module)
    tokens, histories = reference(module, weights, batch, schema)
    factors = {name: torch.randn(DIM) for name in [*tokens, *histories]}
    expected = torch.stack(
        [(tokens[name] * factors[name]).sum() for name in tokens]
        + [(torch.cat(histories[name]) ** 2 * factors[name]).sum() for name in histories]
    ).sum()
    expected.backward()

    tokens_BND, sequences = module(batch)
    terms = [
        (tokens_BND[:, i] * factors[name]).sum() for i, name in enumerate(module.token_names) if name in factors
    ] + [(sequence.values_ED**2 * factors[name]).sum() for name, sequence in sequences.items()]
    loss = torch.stack(terms).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for table, weight in table_weights(module).items():
        expected_weight = reference_step(optimizer, weights[table], 0.5, EPS)
        torch.testing.assert_close(weight, expected_weight, msg=f"{table}: {{}}".format)
        assert not torch.equal(weight, weights[table].detach())


def test_names_and_tables_of_the_tokens() -> None:
    schema = schema_of(*EVERYTHING)
    averaged = featurizer(schema, raw=False, dense_tokens=2)
    assert averaged.token_names == (
        "user", "item", "viewed", "tags", "city", "history", "clicks", "moods", "dense", "dense:1"
    )  # fmt: skip
    assert averaged.token_tables == ("user", "items", "items", "tags", "tags", "", "", "", "", "")
    raw = featurizer(schema, raw=True)
    # Features that share a table with a history come after the others.
    assert raw.token_names == ("user", "tags", "city", "item", "viewed", "dense")
    assert raw.token_tables == ("user", "tags", "tags", "items", "items", "")
    assert featurizer(schema_of("moods"), raw=True).token_names == ()


def test_a_table_is_held_once() -> None:
    for raw in (True, False):
        module = featurizer(schema_of(*EVERYTHING), raw)
        shapes = {table: tuple(weight.shape) for table, weight in table_weights(module).items()}
        assert shapes == {"user": (5, DIM), "items": (6, DIM), "tags": (4, DIM), "history_rating": (3, DIM)}
        names = [name for name in module.state_dict() if "embedding_bags" in name]
        assert len(names) == 4


def test_new_rows_have_the_configured_spread() -> None:
    features = [{"kind": "categorical", "name": "item", "rows": 20_000}]
    schema = exfm.schema.FeatureSchema.model_validate({"features": features, "labels": [{"name": "click"}]})
    weight = table_weights(featurizer(schema, raw=False))["item"]
    assert weight.std().item() == pytest.approx(0.3, rel=0.02)
    assert abs(weight.mean().item()) < 0.005
    assert weight.abs().max().item() <= 0.3 * 3**0.5 + 1e-6


def test_names_that_torch_uses_itself() -> None:
    """A feature may be called `type` and a history `items`: both are attributes of torch's modules."""
    features = [
        {"kind": "categorical", "name": "type", "rows": 5},
        {"kind": "multi_valued", "name": "keys", "rows": 5},
        {"kind": "sequence", "name": "items", "max_length": 4,
         "fields": [{"name": "id", "rows": 6, "table": "values"}, {"name": "age", "kind": "dense"}]},
        {"kind": "categorical", "name": "training", "rows": 6, "table": "values"},
    ]  # fmt: skip
    schema = exfm.schema.FeatureSchema.model_validate({"features": features, "labels": [{"name": "click"}]})
    for raw in (True, False):
        tokens_BND, _ = featurizer(schema, raw)(random_batch(schema, 5))
        assert torch.isfinite(tokens_BND).all()


def test_a_histories_field_and_a_feature_may_have_nearly_one_name() -> None:
    """`history_0` is a feature here, and would be the natural name of the history's first lookup."""
    features = [
        {"kind": "categorical", "name": "history_0", "rows": 5},
        {"kind": "sequence", "name": "history", "max_length": 4, "fields": [{"name": "item", "rows": 6}]},
    ]
    schema = exfm.schema.FeatureSchema.model_validate({"features": features, "labels": [{"name": "click"}]})
    for raw in (True, False):
        module = featurizer(schema, raw)
        batch = random_batch(schema, 6)
        tokens_BND, _ = module(batch)
        torch.testing.assert_close(tokens_BND[:, 0], reference_bags(table_weights(module), batch, schema)["history_0"])


@pytest.mark.parametrize("raw", [True, False])
def test_batches_without_any_event(raw: bool) -> None:
    schema = schema_of(*EVERYTHING)
    module = featurizer(schema, raw)
    batch = random_batch(schema, 1000)
    lengths = torch.stack([sequence.offsets.diff() for sequence in batch.sequences.values()])
    index = torch.nonzero((lengths == 0).all(dim=0)).flatten()
    assert index.numel()
    tokens_BND, sequences = module(batch.select(index))
    assert torch.isfinite(tokens_BND).all()
    assert all(sequence.values_ED.shape == (0, DIM) for sequence in sequences.values())
    (tokens_BND.sum() + sum(sequence.values_ED.sum() for sequence in sequences.values())).backward()
