"""The candidates of a request are predicted as rows that repeat its context."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import exfm
from exfm.serving.capture import capture
from exfm.serving.description import input_specs, needs_event_time, source_columns, type_name
from exfm.serving.loaded_model import LoadedModel
from exfm.serving.predictor import Predictor
from exfm.serving.served_model import ServedModel
from tests.modeling.cases import schema_of
from tests.serving.descriptions import description_of
from tests.serving.rows import random_rows, trained, untaught_arm, with_columns
from tests.serving.test_feature_values import ROWS, SCHEMA

ENCODED = {"backbone": {"name": "mlp"}, "sequence_encoder": {"name": "mean"}}
CASES: dict[str, tuple[dict[str, Any], exfm.schema.FeatureSchema, pa.RecordBatch | None, set[str]]] = {
    "averaged": (
        {"backbone": {"name": "mlp"}},
        with_columns(schema_of("user", "price", "tags", "history", "clicks")),
        None,
        {"user", "tags", "clicks"},
    ),
    "encoded": (
        ENCODED,
        with_columns(schema_of("item", "age", "history", "moods")),
        None,
        {"item", "history", "moods"},
    ),
    "compared with the candidate": (
        {"backbone": {"name": "mlp"}, "sequence_encoder": {"name": "din"}},
        with_columns(schema_of("user", "item", "visits")),
        None,
        {"user", "item"},
    ),
    "weights and vectors": (ENCODED, SCHEMA, ROWS, {"user", "history", "tags", "viewed", "device", "session",
                                                    "account", "campaigns"}),
}  # fmt: skip


class Case:
    """A model without files, with and without the program of a request.

    Args:
        config: the model's.
        schema: the stream's.
        rows: of the stream; random by default.
        shared: the features that candidates share.
    """

    def __init__(
        self,
        config: dict[str, Any],
        schema: exfm.schema.FeatureSchema,
        rows: pa.RecordBatch | None,
        shared: set[str],
    ) -> None:
        self.shared = shared
        arm = untaught_arm({"embedding_dim": 8, **config}, schema)
        _, weights = trained(arm, schema)
        served, self.request = ServedModel(arm, schema, weights), ServedModel(arm, schema, weights, requests=True)
        program, request = capture(served), capture(self.request)
        event_time = "event_time" if needs_event_time(served.features) else ""
        names = [*source_columns(served.features), *([event_time] if event_time else [])]
        rows = random_rows(schema, 12, seed=3) if rows is None else rows
        self.rows = rows.select(list(dict.fromkeys(names)))
        description = description_of(
            served.features,
            {name: type_name(self.rows.column(name).type) for name in self.rows.schema.names},
            schema.tasks,
            event_time=event_time,
            request_inputs=tuple(input_specs(served.features, {}, self.request.shared)),
        )
        self.with_program = Predictor(LoadedModel(description, program.module(), request.module()))
        without = description.model_copy(update={"request_inputs": ()})
        self.without = Predictor(LoadedModel(without, program.module()))


SOAKED = pytest.param("weights and vectors", marks=pytest.mark.soak)


@pytest.fixture(scope="module", params=["averaged", "encoded", "compared with the candidate", SOAKED])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(*CASES[request.param])


def split(rows: pa.RecordBatch, context: list[str]) -> tuple[dict[str, Any], pa.RecordBatch, pa.RecordBatch]:
    """Returns a context, candidates, and the rows that repeat the context."""
    first = rows.slice(0, 1)
    repeated = {name: rows.column(name) for name in rows.schema.names}
    for name in context:
        repeated[name] = first.column(name).take(pa.array([0] * rows.num_rows))
    others = [name for name in rows.schema.names if name not in context]
    return first.select(context).to_pylist()[0], rows.select(others), pa.RecordBatch.from_pydict(repeated)


def column_groups(case: Case) -> list[set[str]]:
    """Returns the columns that are the context's together, or the candidates': lists of equal lengths, for example."""
    groups: list[set[str]] = []
    for feature in case.request.features:
        joined = set(feature.source_columns)
        if needs_event_time([feature]):
            joined.add("event_time")
        joined.update(*(group for group in groups if group & joined))
        groups = [*(group for group in groups if not group & joined), joined]
    return groups


def test_candidates_are_predicted_as_rows(case: Case) -> None:
    random, groups = np.random.default_rng(0), column_groups(case)
    assert case.request.shared == case.shared
    for share in (0, 0.3, 0.6, 0.6, 1):
        shared = set().union(*(group for group in groups if random.random() < share))
        context, candidates, repeated = split(case.rows, sorted(shared))
        expected = case.with_program.predict(repeated)
        for predictor in (case.with_program, case.without):
            for form in (candidates, candidates.to_pylist()):
                for task, values in predictor.predict_request(context, form).items():
                    np.testing.assert_allclose(values, expected[task], rtol=0, atol=2e-6)


def test_a_feature_of_both_sides_is_the_candidates() -> None:
    """A cross of columns of both, and numbers of either."""
    features = [
        {"name": "user", "kind": "categorical", "rows": 50},
        {"name": "item", "kind": "categorical", "rows": 50},
        {"name": "pair", "kind": "crossed", "of": ["user", "item"], "rows": 40},
        {"name": "price", "kind": "dense"},
        {"name": "age", "kind": "dense"},
    ]
    schema = exfm.schema.FeatureSchema.model_validate({"features": features, "labels": [{"name": "click"}]})
    random = np.random.default_rng(0)
    columns = {"user": random.integers(0, 9, 12), "item": random.integers(0, 9, 12)}
    rows = pa.RecordBatch.from_pydict(columns | {"price": random.normal(size=12), "age": random.normal(size=12)})
    case = Case({"backbone": {"name": "mlp"}}, schema, rows, {"user", "item", "pair"})
    context, candidates, repeated = split(case.rows, ["user", "age"])
    expected = case.with_program.predict(repeated)["click"]
    for predictor in (case.with_program, case.without):
        np.testing.assert_allclose(predictor.predict_request(context, candidates)["click"], expected, rtol=0, atol=2e-6)
    nobody = case.with_program.predict_request(context, candidates.slice(0, 0))
    assert nobody["click"].shape == (0,)
