"""Values as logs have them: training, an exported program, ONNX and the loader of exports compute the same."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import exfm
from exfm.data.decode import decode
from exfm.data.validation import RowChecker
from exfm.modeling.ranking_model import RankingModel
from exfm.serving.description import Description, arrays, input_specs, source_columns, type_name
from exfm.serving.export import capture, to_onnx
from exfm.serving.predictor import Predictor
from exfm.serving.served_model import ServedModel
from tests.serving.rows import trained, untaught_arm

SIZE = 40
FEATURES: list[dict[str, Any]] = [
    {"name": "user", "kind": "categorical", "rows": 16},
    {"name": "price", "kind": "dense", "transform": "log1p", "missing": "mean"},
    {"name": "score", "kind": "dense", "missing": "learned"},
    {"name": "hour", "kind": "dense"},
    {"name": "history", "kind": "sequence", "max_length": 3,
     "fields": [{"name": "item", "column": "items", "rows": 8},
                {"name": "gap", "column": "gaps", "kind": "dense", "missing": "learned"}]},
]  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "averaged": {"backbone": {"name": "mlp"}},
    "encoded": {"backbone": {"name": "wukong", "layers": 1}, "sequence_encoder": {"name": "mean"}},
}
SCHEMA = exfm.schema.FeatureSchema.model_validate({"features": FEATURES, "labels": [{"name": "click"}]})


def rows_of_logs() -> pa.RecordBatch:
    """Rows with nulls wherever the schema takes them."""
    random = np.random.default_rng(0)
    lengths = random.integers(0, 5, SIZE)

    def absent(size: int = SIZE) -> np.ndarray:
        return random.random(size) < 0.4

    events = pa.array(random.normal(size=int(lengths.sum())), mask=absent(int(lengths.sum())))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    items = pa.array(random.integers(0, 50, int(lengths.sum())))
    score = random.normal(size=SIZE)
    score[absent()] = np.nan
    columns = {
        "example_id": pa.array(range(SIZE)),
        "event_time": pa.array(range(SIZE), pa.timestamp("us", "UTC")),
        "user": pa.array(random.integers(0, 99, SIZE), mask=absent()),
        "price": pa.array(random.lognormal(size=SIZE), mask=absent()),
        "score": pa.array(score),
        "hour": pa.array(random.integers(0, 24, SIZE)),
        "items": pa.ListArray.from_arrays(offsets, items),
        "gaps": pa.ListArray.from_arrays(offsets, events),
        "click": pa.array(random.integers(0, 2, SIZE)),
    }
    return pa.RecordBatch.from_pydict(columns)


ROWS = rows_of_logs()


def checked(rows: pa.RecordBatch, schema: exfm.schema.FeatureSchema = SCHEMA) -> pa.RecordBatch:
    """Checks rows as training does."""
    return RowChecker(schema, skip=False, newest_us=0).check(rows)


def predictions(model: RankingModel, rows: pa.RecordBatch) -> torch.Tensor:
    """Predicts rows as training does."""
    with torch.no_grad():
        return model(model.narrow(decode(checked(rows), SCHEMA))).logits["click"].sigmoid()


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[RankingModel, ServedModel]:
    arm = untaught_arm({"embedding_dim": 8, **MODELS[request.param]}, SCHEMA)
    network, weights = trained(arm, SCHEMA)
    return network, ServedModel(arm, SCHEMA, weights)


def predictor(served: ServedModel, program: Any) -> Predictor:
    """An export, without its files."""
    description = Description(
        experiment="e",
        model="vm",
        snapshot=0,
        watermark=datetime(2026, 1, 1, tzinfo=UTC),
        versions={},
        columns={name: type_name(ROWS.column(name).type) for name in source_columns(served.features)},
        features=served.features,
        inputs=tuple(input_specs(served.features, {})),
        outputs=({"name": "click", "dtype": "float32", "shape": ("B",), "holds": ""},),
        files={},
    )
    # Through its JSON, as an export is written and loaded.
    return Predictor(Description.model_validate_json(description.model_dump_json()), program.module())


def test_an_export_predicts_as_training_does(model: tuple[RankingModel, ServedModel], tmp_path: Path) -> None:
    network, served = model
    program = capture(served)
    expected_B = predictions(network, ROWS)
    assert torch.isfinite(expected_B).all()
    loaded = predictor(served, program)
    for form in (ROWS, ROWS.to_pylist(), ROWS.slice(7, 1), ROWS.slice(7, 1).to_pylist()):
        expected = expected_B if len(form) == SIZE else expected_B[7:8]
        torch.testing.assert_close(torch.from_numpy(loaded.predict(form)["click"]), expected, rtol=0, atol=1e-6)
    runtime = pytest.importorskip("onnxruntime")
    with warnings.catch_warnings(action="ignore"):
        to_onnx(program, served, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    inputs = dict(zip(served.names, arrays(served.features, checked(ROWS)), strict=True))
    (onnx_B,) = session.run(["click"], inputs)
    np.testing.assert_allclose(onnx_B, expected_B.numpy(), rtol=0, atol=1e-6)


def test_a_missing_value_moves_no_other_row(model: tuple[RankingModel, ServedModel]) -> None:
    network, _ = model
    before_B = predictions(network, ROWS)
    for column in ("price", "score", "gaps"):
        values = ROWS.column(column).to_pylist()
        row = next(number for number, value in enumerate(values) if value and value == value and None not in [value])
        values[row] = [None] * len(values[row]) if isinstance(values[row], list) else None
        index = ROWS.schema.get_field_index(column)
        after_B = predictions(network, ROWS.set_column(index, column, pa.array(values, ROWS.column(column).type)))
        assert (after_B != before_B).nonzero().flatten().tolist() == [row], column


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("price", np.inf, "price: the value is infinite; given: inf"),
        ("hour", None, "hour: the value is missing, NaN or infinite"),
        ("gaps", [np.inf] * 9, "gaps: a number in the list is infinite"),
    ],
)
def test_a_bad_value_is_named(column: str, value: Any, message: str) -> None:
    rows = ROWS.slice(0, 3).to_pylist()
    rows[2][column] = value
    if isinstance(value, list):
        rows[2]["items"] = [1] * len(value)
    kinds = {name: ROWS.schema.field(name).type for name in ROWS.schema.names}
    kinds["hour"] = pa.float64()
    with pytest.raises(exfm.ConfigError, match=f"row 2: {message}"):
        checked(pa.RecordBatch.from_pylist(rows, pa.schema(kinds)))


def test_missing_is_for_numbers() -> None:
    with pytest.raises(ValueError, match=r"'item': missing is for numbers \(kind: dense\)"):
        exfm.schema.SequenceField.model_validate({"name": "item", "missing": "learned"})
