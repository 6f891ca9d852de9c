"""A model that reads its teacher's embedding of the example: predicted from the run, exported, and served."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import exfm
import exfm.serving
from exfm.data.stream import ChunkReader
from exfm.data.windows import stream_windows
from exfm.serving.export import Form, export
from exfm.serving.predict import predict
from exfm.supervision.store import Store
from tests.training.logs import experiment_dict, load, make_log, stream_rows, supervision, train, write_log
from tests.training.test_teacher_inputs import trainer_of

COLUMN = "fm.embedding"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> exfm.Experiment:
    """An FM that stores a compressed embedding of half the users' examples, and a student that reads it."""
    folder = tmp_path_factory.mktemp("pair")
    config = experiment_dict(write_log(folder / "log", make_log(900)), str(folder / "run"))
    config["models"]["fm"] |= {
        "supervision": {"embedding": "float16", "embedding_dim": 5},
        "where": {"user": {"bucket": 0, "of": 2}},
    }
    config["models"]["vm"] |= {"inputs": [{"name": "pair_embedding", "teacher": "fm"}], "control": False}
    experiment = load(folder, config)
    train(experiment)
    return experiment


@pytest.fixture(scope="module")
def stored(ended: exfm.Experiment) -> dict[int, list[float] | None]:
    """The FM's embedding by example id; None where it has predicted nothing."""
    rows = pa.concat_tables(supervision(ended.run_dir, "fm").values())
    columns = ("example_id", "embedding", "prediction_click")
    ids, vectors, probabilities = (rows.column(name).to_pylist() for name in columns)
    return {
        key: None if probability is None else list(map(float, vector))
        for key, vector, probability in zip(ids, vectors, probabilities, strict=True)
    }


@pytest.fixture(scope="module")
def predicted(ended: exfm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    file = tmp_path_factory.mktemp("predicted") / "vm.parquet"
    predict(ended, "vm", str(file))
    return pq.read_table(file)


def test_predictions_are_the_snapshot_s_of_the_stored_embeddings(
    ended: exfm.Experiment, stored: dict[int, list[float] | None], predicted: pa.Table
) -> None:
    """Against the network itself, over embeddings that are read from the files by example id."""
    trainer = trainer_of(ended, "vm")
    snapshots = Store(ended.run_dir).snapshots
    trainer.load_weights(snapshots.load(next(snapshots.newest_first("vm", 2**62)).weights))
    network, stream = trainer.model, ended.config.stream
    reader = ChunkReader(ended.source, ended.schema, stream, {}, exfm.sources.Shard())
    expected: list[torch.Tensor] = []
    for window in stream_windows(ended.source, stream.window):
        for chunk in reader.read(window):
            vectors = [stored.get(key) or [np.nan] * 5 for key in chunk.batch.example_id.tolist()]
            batch = network.narrow(chunk.batch)
            batch.embeddings["fm"] = torch.tensor(vectors)  # type: ignore[index]
            expected.append(network(batch).logits["click"].sigmoid().detach())
    actual = predicted.column("prediction_click").to_numpy()
    np.testing.assert_allclose(actual, torch.cat(expected).numpy(), rtol=0, atol=1e-6)


def test_rows_without_an_embedding_are_counted(
    ended: exfm.Experiment,
    stored: dict[int, list[float] | None],
    predicted: pa.Table,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored_count = sum(vector is not None for vector in stored.values())
    with caplog.at_level(logging.WARNING):
        predict(ended, "vm", str(tmp_path / "again.parquet"))
    missing = f"{len(predicted) - stored_count} of {len(predicted)} rows"
    assert f"vm: of {missing} the run has no embedding of fm" in caplog.text
    assert 300 < stored_count < 600


@pytest.fixture(scope="module")
def predictor(ended: exfm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> exfm.serving.Predictor:
    folder = str(tmp_path_factory.mktemp("export"))
    export(ended, "vm", folder, Form(compiled=False))
    return exfm.serving.load(folder)


def test_the_export_predicts_the_same_from_rows_with_embeddings(
    ended: exfm.Experiment,
    stored: dict[int, list[float] | None],
    predicted: pa.Table,
    predictor: exfm.serving.Predictor,
) -> None:
    described = predictor.description
    assert described.embeddings == {"fm": 5} and described.columns[COLUMN] == "list of double"
    assert (described.inputs[-1].name, described.inputs[-1].shape) == (COLUMN, ("B", 5))
    rows = stream_rows(ended)
    vectors = [stored.get(key) for key in rows.column("example_id").to_pylist()]
    expected = predicted.column("prediction_click").to_numpy()
    # As lists of doubles, and as the file of the supervision has them.
    for kind in (pa.list_(pa.float64()), pa.list_(pa.float16(), 5)):
        halves = [None if vector is None else np.array(vector, np.float16) for vector in vectors]
        column = pa.array(vectors if kind.value_type == pa.float64() else halves, kind)
        batch = rows.append_column(COLUMN, column).combine_chunks().to_batches()[0]
        np.testing.assert_allclose(predictor.predict(batch)["click"], expected, rtol=0, atol=1e-6)
    mappings = [{"user": row["user"], "item": row["item"]} for row in rows.slice(0, 9).to_pylist()]
    for row, vector in zip(mappings, vectors, strict=False):
        row[COLUMN] = vector
    np.testing.assert_allclose(predictor.predict(mappings)["click"], expected[:9], rtol=0, atol=1e-6)
    without = predictor.predict([row | {COLUMN: None} for row in mappings])["click"]
    has = np.array([vector is not None for vector in vectors[:9]])
    assert (np.abs(without - expected[:9]) > 1e-6)[has].all()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({}, r"row 0: fm\.embedding: the column is missing"),
        (
            {COLUMN: [1.0, 2.0]},
            r"row 0: fm\.embedding: the model reads embeddings of 5 numbers, given: 2; give null where",
        ),
        ({COLUMN: [1.0, 2.0, None, 3.0, 4.0]}, r"row 0: fm\.embedding: a number is missing or not finite"),
        ({COLUMN: [1.0, 2.0, float("inf"), 3.0, 4.0]}, r"row 0: fm\.embedding: a number is missing or not finite"),
        ({COLUMN: 3.0}, r"fm\.embedding: the values must be list"),
    ],
)
def test_wrong_embeddings_are_refused(predictor: exfm.serving.Predictor, row: dict[str, Any], message: str) -> None:
    with pytest.raises(exfm.ConfigError, match=message):
        predictor.predict([{"user": 1, "item": 2} | row])


def test_onnx_masks_missing_embeddings(ended: exfm.Experiment, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    with warnings.catch_warnings(action="ignore"):
        export(ended, "vm", str(tmp_path), Form(compiled=False, onnx=True))
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    model = exfm.serving.load(str(tmp_path))
    tensors = model.tensors([{"user": 1, "item": 2, COLUMN: vector} for vector in ([1.0, 2.0, 3.0, 4.0, 9.0], None)])
    names = [spec.name for spec in model.description.inputs]
    outputs = session.run(["click"], {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)})
    np.testing.assert_allclose(outputs[0], model.run(tensors)["click"], rtol=0, atol=1e-6)
