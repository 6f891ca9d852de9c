"""Weighted lists of ids: the weighted mean, wherever the table is, and the plain mean where all weights are equal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

import exfm
from exfm.data.batch import Batch
from exfm.data.decode import decode
from exfm.data.validation import RowChecker
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.modeling.build import build_model
from exfm.modeling.ranking_model import RankingModel
from exfm_plugins.parallel.single.plan import Single
from tests.modeling.cases import mean, table_weights
from tests.serving.rows import untaught_arm

FEATURES: list[dict[str, Any]] = [
    {"name": "user", "kind": "categorical", "rows": 5, "ids": "row"},
    {"name": "tags", "kind": "multi_valued", "rows": 6, "ids": "row", "weights": "tag_weights"},
    {"name": "kinds", "kind": "multi_valued", "rows": 6, "ids": "row"},
    {"name": "viewed", "kind": "multi_valued", "rows": 6, "ids": "row", "table": "items", "weights": "viewed_weights"},
    {"name": "history", "kind": "sequence", "max_length": 4,
     "fields": [{"name": "item", "column": "history", "rows": 6, "ids": "row", "table": "items"}]},
]  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "averaged": {"backbone": {"name": "mlp"}},
    "encoded": {"backbone": {"name": "mlp"}, "sequence_encoder": {"name": "mean"}},
}


def schema_of(*, weighted: bool = True) -> exfm.schema.FeatureSchema:
    features = [{k: v for k, v in feature.items() if weighted or k != "weights"} for feature in FEATURES]
    return exfm.schema.FeatureSchema.model_validate({"features": features, "labels": [{"name": "click"}]})


def rows_with(tag_weights: list[Any] | None = None) -> pa.RecordBatch:
    tags = [[0, 1, 5], [], None, [2], [3, 3]]
    columns = {
        "example_id": pa.array(range(5)),
        "event_time": pa.array(range(5), pa.timestamp("us")),
        "user": pa.array([0, 1, None, 3, 4]),
        "tags": pa.array(tags, pa.list_(pa.int64())),
        "tag_weights": pa.array(tag_weights or [[1, 2.5, 0.5], None, [], [0], [1, 3]], pa.list_(pa.float32())),
        "kinds": pa.array([[1, 2], [3], [], [4, 4, 5], [0]], pa.list_(pa.int64())),
        "viewed": pa.array([[1, 2], [3], [], [4, 4, 5], [0]], pa.list_(pa.int64())),
        "viewed_weights": pa.array([[1, 0], [0.1], [], [2, 1, 1], [7]], pa.list_(pa.float64())),
        "history": pa.array([[1], [], [2, 3], [4], [5, 1]], pa.list_(pa.int64())),
        "click": pa.array([0, 1, 0, 1, 0]),
    }
    return pa.RecordBatch.from_pydict(columns)


def batch_of(rows: pa.RecordBatch, schema: exfm.schema.FeatureSchema) -> Batch:
    return decode(RowChecker(schema, skip=False, newest_us=0).check(rows), schema)


def placed(config: dict[str, Any], schema: exfm.schema.FeatureSchema) -> RankingModel:
    """A model with fused tables, as a run trains it."""
    torch.manual_seed(0)
    arm = untaught_arm({"embedding_dim": 8, "embedding_init": 1.0, **config}, schema)
    model = build_model(arm, schema)
    torch.manual_seed(1)
    Single(Single.Config(device="cpu")).parallelize(model, TableOptimizer(name="sgd", lr=0.5))
    # Drawn table by table, because the kernels draw theirs in another order where ids have weights.
    with torch.no_grad():
        for table in sorted(table_weights(model)):
            table_weights(model)[table].normal_()
    return model


def lists(batch: Batch, name: str) -> list[tuple[Tensor, Tensor]]:
    """The rows and weights of each example."""
    bags = batch.sparse[name]
    lengths = bags.lengths().tolist()
    return list(zip(bags.values().split(lengths), bags.weights().split(lengths), strict=True))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_a_token_is_the_weighted_mean(config: dict[str, Any]) -> None:
    schema = schema_of()
    model, rows = placed(config, schema), rows_with()
    tokens_BND, sequences = model.featurizer(model.narrow(batch_of(rows, schema)))
    tables = table_weights(model)
    for name, table in (("tags", "tags"), ("viewed", "items"), ("kinds", "kinds"), ("user", "user")):
        weights = {"tags": "tag_weights", "viewed": "viewed_weights"}.get(name)
        expected = []
        for row in rows.to_pylist():
            ids = row[name] if isinstance(row[name], list) else [row[name]] if row[name] is not None else []
            weight_V = torch.tensor((row[weights] or []) if weights else [1.0] * len(ids))
            total_D = (tables[table][ids] * weight_V.unsqueeze(1)).sum(dim=0)
            expected.append(total_D / weight_V.sum() if weight_V.sum() else torch.zeros(8))
        position = model.featurizer.token_names.index(name)
        torch.testing.assert_close(tokens_BND[:, position], torch.stack(expected), rtol=0, atol=1e-6)
    histories = [tables["items"][row["history"]] for row in rows.to_pylist()]
    if sequences:
        torch.testing.assert_close(sequences["history"].values_ED, torch.cat(histories))
    else:
        position = model.featurizer.token_names.index("history")
        torch.testing.assert_close(tokens_BND[:, position], torch.stack(list(map(mean, histories))))


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_equal_weights_are_none(config: dict[str, Any]) -> None:
    """Predictions, and tables after a step, are those of the features without weights."""
    rows = rows_with([[2, 2, 2], [], [], [0.1], [1, 1]])
    ones = [[3.0] * len(ids) for ids in rows.column("viewed").to_pylist()]
    index = rows.schema.get_field_index("viewed_weights")
    rows = rows.set_column(index, "viewed_weights", pa.array(ones))
    outputs, tables = [], []
    for weighted in (True, False):
        schema = schema_of(weighted=weighted)
        model = placed(config, schema)
        logits_B = model(model.narrow(batch_of(rows, schema))).logits["click"]
        logits_B.square().sum().backward()
        outputs.append(logits_B.detach())
        tables.append(table_weights(model))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)
    for table, weight in tables[0].items():
        torch.testing.assert_close(weight, tables[1][table], rtol=0, atol=1e-6)


def test_weights_stay_with_their_ids() -> None:
    schema = schema_of()
    batch = batch_of(rows_with(), schema)
    shares = [weights.tolist() for _, weights in lists(batch, "tags")]
    assert shares == [[0.25, 0.625, 0.125], [], [], [0.0], [0.25, 0.75]]
    assert [weights.sum().item() for _, weights in lists(batch, "kinds")] == pytest.approx([1, 1, 0, 1, 1])
    for picked, index in ((batch.slice(1, 5), [1, 2, 3, 4]), (batch.select(torch.tensor([4, 0, 2])), [4, 0, 2])):
        for name in ("user", "tags", "kinds", "viewed"):
            for actual, row in zip(lists(picked, name), index, strict=True):
                expected = lists(batch, name)[row]
                assert torch.equal(actual[0], expected[0]) and torch.equal(actual[1], expected[1])
    emptied = batch.bags_only(frozenset({"tags"}))
    assert torch.equal(emptied.sparse["tags"].weights(), batch.sparse["tags"].weights())
    assert emptied.sparse["kinds"].weights().numel() == 0
    # A model that reads no weighted feature has the batch that it has in a stream without weights.
    arm = untaught_arm({"embedding_dim": 8, "backbone": {"name": "mlp"}, "features": ["user", "kinds"]}, schema)
    narrowed = build_model(arm, schema).narrow(batch)
    assert narrowed.sparse.weights_or_none() is None and narrowed.sparse.keys() == ["user", "kinds"]


@pytest.mark.parametrize(
    ("row", "weights", "message"),
    [
        (0, [1.0, 2.0], "the list is not as long as that of tags"),
        (3, [-0.5], r"a weight is a finite number, 0 or more; given: \[-0\.5\]"),
        (3, [None], "a weight is a finite number, 0 or more"),
        (4, [1.0, np.inf], "a weight is a finite number, 0 or more"),
    ],
)
def test_a_bad_weight_is_named(row: int, weights: list[Any], message: str) -> None:
    lists_of_weights: list[Any] = [[1, 2.5, 0.5], None, [], [0], [1, 3]]
    lists_of_weights[row] = weights
    with pytest.raises(exfm.ConfigError, match=f"row {row}: tag_weights: {message}"):
        batch_of(rows_with(lists_of_weights), schema_of())
