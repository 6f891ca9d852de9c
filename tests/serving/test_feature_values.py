"""Values as logs have them: training, an exported program, ONNX and the loader of exports compute the same."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.export import ExportedProgram

import exfm
from exfm.data.decode import decode
from exfm.data.validation import RowChecker
from exfm.modeling.ranking_model import RankingModel
from exfm.modeling.vector_token import VectorToken
from exfm.serving.capture import capture
from exfm.serving.description import Description, arrays, source_columns, type_name
from exfm.serving.loaded_model import LoadedModel
from exfm.serving.predictor import Predictor
from exfm.serving.served_model import ServedModel
from exfm.serving.write_programs import to_onnx
from tests.serving.descriptions import description_of
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
    {"name": "tags", "kind": "multi_valued", "rows": 8, "weights": "tag_weights"},
    {"name": "viewed", "kind": "multi_valued", "rows": 8, "column": "items", "weights": "gaps_ms",
     "table": "history_item"},
    {"name": "device", "kind": "categorical", "rows": 16},
    {"name": "session", "kind": "categorical", "rows": 16},
    {"name": "account", "kind": "categorical", "rows": 16},
    {"name": "campaigns", "kind": "multi_valued", "rows": 16},
    {"name": "text", "kind": "vector", "column": "text_embedding", "width": 6},
]  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "averaged": {"backbone": {"name": "mlp"}},
    "encoded": {"backbone": {"name": "wukong", "layers": 1}, "sequence_encoder": {"name": "mean"}},
}
SCHEMA = exfm.schema.FeatureSchema.model_validate({"features": FEATURES, "labels": [{"name": "click"}]})


def uuid_lists(random: np.random.Generator, lengths: np.ndarray) -> pa.Array:
    """Lists of UUIDs, which Arrow makes of their bytes only."""
    octets = pa.array([random.bytes(16) for _ in range(int(lengths.sum()))], pa.binary(16))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pa.ExtensionArray.from_storage(pa.uuid(), octets))


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
        "tags": pa.ListArray.from_arrays(offsets, pa.array(random.choice(["a", "b", "c"], int(lengths.sum())))),
        "tag_weights": pa.ListArray.from_arrays(offsets, pa.array(random.integers(0, 3, int(lengths.sum())))),
        "gaps_ms": pa.ListArray.from_arrays(offsets, pa.array(random.random(int(lengths.sum())), pa.float32())),
        "text_embedding": pa.array(
            [None if gone else random.normal(size=6) for gone in absent()], pa.list_(pa.float64())
        ),
        "device": pa.array([None if gone else UUID(bytes=random.bytes(16)) for gone in absent()]),
        "session": pa.array([None if gone else random.bytes(5) for gone in absent()], pa.large_binary()),
        "account": pa.array(
            [None if gone else 2**64 - 1 - number for number, gone in enumerate(absent())], pa.uint64()
        ),
        "campaigns": uuid_lists(random, lengths),
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


@dataclass(frozen=True)
class Exported:
    """A trained model, and its program."""

    network: RankingModel
    served: ServedModel
    program: ExportedProgram


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Exported:
    arm = untaught_arm({"embedding_dim": 8, **MODELS[request.param]}, SCHEMA)
    network, weights = trained(arm, SCHEMA)
    served = ServedModel(arm, SCHEMA, weights)
    return Exported(network, served, capture(served))


def predictor(model: Exported) -> Predictor:
    """An export, without its files."""
    served = model.served
    columns = {name: type_name(ROWS.column(name).type) for name in source_columns(served.features)}
    description = description_of(served.features, columns, ["click"])
    # Through its JSON, as an export is written and loaded.
    return Predictor(
        LoadedModel(Description.model_validate_json(description.model_dump_json()), model.program.module())
    )


def test_an_export_predicts_as_training_does(model: Exported, tmp_path: Path) -> None:
    expected_B = predictions(model.network, ROWS)
    assert torch.isfinite(expected_B).all()
    loaded = predictor(model)
    for form in (ROWS, ROWS.to_pylist(), ROWS.slice(7, 1), ROWS.slice(7, 1).to_pylist()):
        expected = expected_B if len(form) == SIZE else expected_B[7:8]
        torch.testing.assert_close(torch.from_numpy(loaded.predict(form)["click"]), expected, rtol=0, atol=1e-6)
    if model.network.encoders:
        return  # the graph of a sequence encoder has its own tests of ONNX
    runtime = pytest.importorskip("onnxruntime")
    with warnings.catch_warnings(action="ignore"):
        to_onnx(model.program, model.served, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    inputs = dict(zip(model.served.names, arrays(model.served.features, checked(ROWS)), strict=True))
    (onnx_B,) = session.run(["click"], inputs)
    np.testing.assert_allclose(onnx_B, expected_B.numpy(), rtol=0, atol=1e-6)


def test_ids_of_another_type_are_refused(model: Exported) -> None:
    """A UUID's text is another id than the UUID."""
    loaded = predictor(model)
    assert {loaded.description.columns[name] for name in ("device", "session", "account", "campaigns")} == {
        "16 bytes", "bytes", "uint64", "list of 16 bytes"
    }  # fmt: skip
    row = ROWS.slice(0, 1).to_pylist()[0]
    for column, value in (("device", str(UUID(int=5))), ("account", -1), ("session", 5), ("campaigns", ["text"])):
        with pytest.raises(exfm.ConfigError, match=f"{column}: the values must be"):
            loaded.predict([row | {column: value}])


def test_a_missing_value_moves_no_other_row(model: Exported) -> None:
    before_B = predictions(model.network, ROWS)
    for column in ("price", "score", "gaps", "text_embedding"):
        values = ROWS.column(column).to_pylist()
        row = next(number for number, value in enumerate(values) if value and value == value and None not in [value])
        values[row] = [None] * len(values[row]) if column == "gaps" else None
        index = ROWS.schema.get_field_index(column)
        after_B = predictions(model.network, ROWS.set_column(index, column, pa.array(values, ROWS.column(column).type)))
        assert (after_B != before_B).nonzero().flatten().tolist() == [row], column


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("price", np.inf, "price: the value is infinite; given: inf"),
        ("hour", None, "hour: the value is missing, NaN or infinite"),
        ("gaps", [np.inf] * 9, "gaps: a number in the list is infinite"),
        ("text_embedding", [0.0] * 5, "text_embedding: the vector has 5 numbers, and width is 6; given: "),
        ("text_embedding", [], "text_embedding: the vector has 0 numbers"),
        ("text_embedding", [0.0] * 5 + [None], "text_embedding: a number in the vector is missing, NaN or infinite"),
    ],
)
def test_a_bad_value_is_named(column: str, value: Any, message: str) -> None:
    rows = ROWS.slice(0, 3).to_pylist()
    rows[2][column] = value
    if column == "gaps":
        rows[2]["items"] = rows[2]["gaps_ms"] = [1] * len(value)
    kinds = {name: ROWS.schema.field(name).type for name in ROWS.schema.names}
    kinds |= {"hour": pa.float64(), "campaigns": pa.list_(pa.binary(16))}
    with pytest.raises(exfm.ConfigError, match=f"row 2: {message}"):
        checked(pa.RecordBatch.from_pylist(rows, pa.schema(kinds)))


@pytest.mark.parametrize("kind", [pa.list_(pa.float16(), 6), pa.large_list(pa.float32()), pa.list_(pa.int8(), 6)])
def test_vectors_of_any_list_type(kind: pa.DataType) -> None:
    """A fixed-size list has values under its nulls, and a slice begins in the middle of them."""
    vectors = [None, [1, 2, 3, 4, 5, 6], None, [-1, 0, 2, 0, 1, 0], [7, 7, 7, 7, 7, 7]]
    index = ROWS.schema.get_field_index("text_embedding")
    rows, expected = (
        ROWS.slice(0, 4).set_column(index, "text_embedding", pa.array(vectors, type_)[1:])
        for type_ in (kind, pa.list_(pa.float64()))
    )
    batch, wide = decode(checked(rows), SCHEMA), decode(checked(expected), SCHEMA)
    assert torch.equal(batch.vectors["text"].nan_to_num(-9), wide.vectors["text"].nan_to_num(-9))
    assert batch.vectors["text"][2].tolist() == vectors[3] and batch.vectors["text"][1].isnan().all()
    parts = torch.cat([batch.slice(0, 2).vectors["text"], batch.select(torch.tensor([2, 3])).vectors["text"]])
    assert torch.equal(parts.nan_to_num(-9), batch.vectors["text"].nan_to_num(-9))


def test_a_vector_is_normed_and_a_missing_vector_is_learned() -> None:
    torch.manual_seed(0)
    token = VectorToken(4, 3)
    vectors = torch.randn(3, 4)
    torch.testing.assert_close(token(vectors * 50 + 7), token(vectors), rtol=0, atol=1e-4)
    vectors[1] = torch.nan
    vectors[2] *= 1e30
    output = token(vectors)
    assert torch.equal(output[1], token.missing_D) and output.isfinite().all()
    output.square().sum().backward()
    for parameter in token.parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()


def test_missing_is_for_numbers() -> None:
    with pytest.raises(ValueError, match=r"'item': missing is for numbers \(kind: dense\)"):
        exfm.schema.SequenceField.model_validate({"name": "item", "missing": "learned"})
