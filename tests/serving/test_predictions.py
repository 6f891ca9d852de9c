"""Batch predictions, the loader and the HTTP service predict the same as the snapshot."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exfm
import exfm.serving
from exfm.config.needed_columns import to_predict
from exfm.serving.export import Form, export
from exfm.serving.predict import predict
from tests.training.logs import stream_rows

COLUMNS = ("user", "item", "price", "history")


@pytest.fixture(scope="module")
def exported(run: exfm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("export"))
    export(run, "ah", folder, Form(compiled=False))
    return folder


@pytest.fixture(scope="module")
def predictor(exported: str) -> exfm.serving.Predictor:
    return exfm.serving.load(exported)


@pytest.fixture(scope="module")
def predicted(run: exfm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Predicts with `exfm predict`."""
    file = tmp_path_factory.mktemp("predicted") / "ah.parquet"
    predict(run, "ah", str(file))
    return pq.read_table(file)


def rows_seen(run: exfm.Experiment, predicted: pa.Table) -> pa.RecordBatch:
    rows = stream_rows(run)
    seen = rows.filter(pa.compute.is_in(rows["example_id"], predicted["example_id"]))
    return seen.combine_chunks().to_batches()[0]


def check(predictions: Any, predicted: pa.Table) -> None:
    assert predictions.keys() == {"click", "buy"}
    for task, probabilities in predictions.items():
        assert probabilities.dtype == np.float32 and ((probabilities > 0) & (probabilities < 1)).all()
        np.testing.assert_allclose(probabilities, predicted[f"prediction_{task}"].to_numpy(), rtol=0, atol=1e-6)


def test_the_loader_and_predict_agree(
    run: exfm.Experiment, predictor: exfm.serving.Predictor, predicted: pa.Table
) -> None:
    rows = rows_seen(run, predicted)
    check(predictor.predict(rows), predicted)
    check(predictor.predict(rows.select(["price", "history", "user", "item"])), predicted)
    check(predictor.predict(rows.to_pylist()), predicted)
    for index in (0, 7):
        check(predictor.predict(rows.to_pylist()[index : index + 1]), predicted.slice(index, 1))
    assert [len(probabilities) for probabilities in predictor.predict([]).values()] == [0, 0]


def test_the_file_has_the_rows_that_the_model_sees(run: exfm.Experiment, predicted: pa.Table) -> None:
    everything, kept = stream_rows(run), run.config.models["ah"].where["user"]
    assert kept.bucket == (0, 1)  # type: ignore[union-attr]
    ids = everything["example_id"].to_pylist()
    seen = predicted["example_id"].to_pylist()
    assert 0.4 * len(ids) < len(seen) < 0.9 * len(ids)
    trained_on = pq.ParquetDataset(f"{run.run_dir}/predictions/ah").read()
    assert seen == sorted(trained_on["example_id"].to_pylist()) == [id_ for id_ in ids if id_ in set(seen)]
    times = dict(zip(ids, everything["event_time"].cast(pa.int64()).to_pylist(), strict=True))
    assert predicted["event_time"].cast(pa.int64()).to_pylist() == [times[id_] for id_ in seen]
    assert predicted.schema.names == ["example_id", "event_time", "prediction_click", "prediction_buy"]
    metadata = predicted.schema.metadata
    assert metadata[b"exfm.model"] == b"ah" and metadata[b"exfm.kind.click"] == b"probability"
    assert int(metadata[b"exfm.watermark_us"]) >= run.source.time_range().end_us


def test_the_file_may_be_any_url(run: exfm.Experiment, predicted: pa.Table) -> None:
    predict(run, "ah", "memory://predicted.parquet")
    with fsspec.open("memory://predicted.parquet") as file:
        assert pq.read_table(file) == predicted


def other_log(run: exfm.Experiment, folder: Path, rows: pa.Table) -> exfm.Experiment:
    """Returns the experiment with other rows in its stream."""
    folder.mkdir()
    pq.write_table(rows, folder / "a.parquet")
    overrides = [f"stream.source.path={folder}"]
    return exfm.load_experiment(str(Path(run.run_dir).parent / "served.yaml"), overrides)


def test_rows_to_be_predicted_need_only_the_columns_that_the_model_reads(
    run: exfm.Experiment, predicted: pa.Table, tmp_path: Path
) -> None:
    """Labels and columns of other models may be null or absent; an example may be repeated."""
    rows = stream_rows(run)
    assert {"click", "buy"} < set(rows.schema.names)
    nulls = rows
    for label in ("click", "buy"):
        nulls = nulls.set_column(rows.schema.names.index(label), label, pa.nulls(rows.num_rows, pa.int8()))
    for name, changed in (("absent", rows.drop_columns(["click", "buy"])), ("null", nulls)):
        out = tmp_path / f"{name}.parquet"
        predict(other_log(run, tmp_path / name, changed), "ah", str(out))
        assert pq.read_table(out) == predicted
    config = run.config.models["sa"]
    assert config.features is not None
    assert not config.where
    slim = rows.select(["example_id", "event_time", *config.features]).slice(0, 50)
    doubled = pa.concat_tables([slim, slim.slice(49)])
    out = tmp_path / "slim.parquet"
    predict(other_log(run, tmp_path / "slim", doubled), "sa", str(out))
    assert pq.read_table(out).num_rows == 51
    with pytest.raises(exfm.ConfigError, match=f"no file at .* has a column '{config.features[0]}'"):
        predict(other_log(run, tmp_path / "bare", slim.drop_columns([config.features[0]])), "sa", str(out))


def test_columns_of_other_models_are_not_read(run: exfm.Experiment, tmp_path: Path) -> None:
    """Only the model's features and the features in its conditions are read, in the order of the schema."""
    # Of a user that there is: of a row group that cannot hold it, the model reads no feature.
    user = stream_rows(run)["user"][0].as_py()
    overrides = ["models.sa.features=[item]", f"models.sa.where={{user: {user}}}", f"stream.source.path={tmp_path}"]
    experiment = exfm.load_experiment(str(Path(run.run_dir).parent / "served.yaml"), overrides)
    arm = next(arm for arm in experiment.arms if arm.name == "sa")
    seen = to_predict(experiment, arm)
    assert seen.schema.columns == ("example_id", "event_time", "user", "item")
    pq.write_table(stream_rows(run).select(["item", "user", "event_time", "example_id"]), tmp_path / "a.parquet")
    span = seen.source.time_range()
    [batch, *_] = seen.source.read(exfm.sources.Window(0, span.start_us, span.end_us))
    assert set(batch.schema.names) == set(seen.schema.columns)


def test_ids_to_be_predicted_have_the_type_that_was_trained_on(run: exfm.Experiment, tmp_path: Path) -> None:
    rows = stream_rows(run)
    numbers = rows.set_column(rows.schema.names.index("user"), "user", pa.array(range(rows.num_rows)))
    with pytest.raises(exfm.ConfigError, match="user: the column holds int64, and held strings until now"):
        predict(other_log(run, tmp_path / "numbers", numbers), "ah", str(tmp_path / "out.parquet"))


def test_a_snapshot_predicts_the_same_as_the_run(
    run: exfm.Experiment, experiment_file: str, exfm_cli: Any, tmp_path: Path
) -> None:
    """The run predicted the first batch of a window with the snapshot of the preceding window."""
    copy = tmp_path / "run"
    shutil.copytree(run.run_dir, copy)
    *_, before, last = sorted((copy / "commits/train/sa.control").iterdir())
    last.unlink()
    out = str(tmp_path / "predicted.parquet")
    outcome = exfm_cli("predict", experiment_file, f"run_dir={copy}", "--model", "sa.control", "--out", out)
    assert outcome.status == 0 and f"snapshot {int(before.stem)}, trained until" in outcome.out
    table = pq.read_table(out)
    predictions = dict(zip(table["example_id"].to_pylist(), table["prediction_click"].to_pylist(), strict=True))
    in_the_run = pq.read_table(next(Path(run.run_dir, "predictions/sa.control").glob(f"window-{last.stem}-*")))
    for row in in_the_run.slice(0, 32).to_pylist():
        assert predictions[row["example_id"]] == pytest.approx(row["prediction_click"], abs=1e-6)


def test_a_bad_row_leaves_no_file(run: exfm.Experiment, experiment_file: str, tmp_path: Path) -> None:
    rows = stream_rows(run)
    price = rows["price"].to_pylist()
    price[-1] = float("nan")
    bad = rows.set_column(rows.schema.get_field_index("price"), "price", pa.array(price))
    pq.write_table(bad, tmp_path / "bad.parquet")
    experiment = exfm.load_experiment(experiment_file, [f"stream.source.path={tmp_path / 'bad.parquet'}"])
    out = tmp_path / "out"
    with pytest.raises(exfm.ConfigError, match="the value is missing, NaN or infinite"):
        predict(experiment, "ah", str(out / "p.parquet"))
    assert list(out.iterdir()) == []
    with pytest.raises(exfm.ConfigError, match="is a folder; name the Parquet file"):
        predict(experiment, "ah", f"{out}/")


ROW = {"user": "user-1", "item": "item-2", "price": 3.0, "history": ["item-4"]}


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"item": None}, None),
        ({"price": 3, "history": []}, None),
        ({"history": None}, None),
        ({"user": 17}, "user: the values must be string"),
        ({"price": "3"}, "price: the values must be double"),
        ({"price": None}, "row 1: price: the value is missing, NaN or infinite"),
        ({"price": float("inf")}, "row 1: price: the value is missing, NaN or infinite; given: inf"),
        ({"history": ["item-4", None]}, "row 1: history: an id in the list is missing"),
        ({"history": "item-4"}, "row 1: history: the value must be list<item: string>; given: 'item-4'"),
        ({"usr": "user-1", "user": ...}, "row 1: user: the column is missing. Did you mean 'usr'?"),
    ],
)
def test_rows_are_checked(changed: dict[str, Any], words: str | None, predictor: exfm.serving.Predictor) -> None:
    row = {column: value for column, value in (ROW | changed).items() if value is not ...}
    if words is None:
        predictor.predict([ROW, row])
        return
    with pytest.raises(exfm.ConfigError) as raised:
        predictor.predict([ROW, row])
    assert words in str(raised.value)


def test_other_arrow_types_of_the_same_values(predictor: exfm.serving.Predictor) -> None:
    rows = pa.RecordBatch.from_pylist([ROW, ROW | {"item": None, "history": []}])
    other = pa.RecordBatch.from_pydict(
        {
            "user": rows["user"].dictionary_encode(),
            "item": rows["item"].cast(pa.large_string()),
            "price": rows["price"].cast(pa.int16()),
            "history": rows["history"].cast(pa.large_list(pa.large_string())),
            "more": pa.nulls(2),
        }
    )
    for task, probabilities in predictor.predict(rows).items():
        assert (predictor.predict(other)[task] == probabilities).all()
    with pytest.raises(exfm.ConfigError, match="history: the column is missing"):
        predictor.predict(rows.drop_columns(["history"]))
    with pytest.raises(exfm.ConfigError, match="price: the column must be double, not"):
        predictor.predict(rows.set_column(2, "price", pa.array(["a", "b"])))


def test_a_corrupt_export_is_refused(exported: str, tmp_path: Path) -> None:
    for name in json.loads(Path(exported, "inputs.json").read_text())["files"] | {"inputs.json": None}:
        (tmp_path / name).write_bytes(Path(exported, name).read_bytes())
    with pytest.raises(exfm.ConfigError, match=r"the export has no compiled\.pt2; it has program\.pt2, weights-"):
        exfm.serving.load(str(tmp_path), compiled=True)
    with (tmp_path / "program.pt2").open("r+b") as file:
        file.seek(1_000)
        file.write(b"other")
    with pytest.raises(exfm.RunError, match=r"program\.pt2: corrupt"):
        exfm.serving.load(str(tmp_path))
    (tmp_path / "inputs.json").write_text("{}")
    with pytest.raises(exfm.RunError, match=r"inputs\.json: not the description of an export"):
        exfm.serving.load(str(tmp_path))
    with pytest.raises(exfm.ConfigError, match=r"no inputs\.json here; `exfm export` writes it"):
        exfm.serving.load(str(tmp_path / "nowhere"))


SERVING = """
import runpy, sys
for missing in ("torchrec", "fbgemm_gpu", "exfm_plugins", "matplotlib", "jinja2"):
    sys.modules[missing] = None
runpy.run_module("exfm", run_name="__main__")
"""


@pytest.fixture(scope="module")
def address(exported: str) -> Iterator[str]:
    """Starts the service in a process that cannot import the packages which serving must not need."""
    command = [sys.executable, "-W", "ignore", "-c", SERVING, "serve", exported, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            assert line.startswith("ah, snapshot ")
            yield line.split()[-1]
        finally:
            server.terminate()


def ask(url: str, body: bytes | None = None) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(url, body, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_a_serving_process_needs_neither_torchrec_nor_fbgemm_nor_plugins(address: str) -> None:
    status, content = ask(f"{address}/predict", json.dumps({"rows": [ROW]}).encode())
    assert status == 200 and len(content["predictions"]) == 1


def test_the_service_answers_with_the_same_predictions(
    address: str, run: exfm.Experiment, predicted: pa.Table, exported: str
) -> None:
    rows = rows_seen(run, predicted).select(list(COLUMNS)).to_pylist()
    status, content = ask(f"{address}/predict", json.dumps({"rows": rows}).encode())
    assert status == 200
    answers = content["predictions"]
    assert len(answers) == len(rows)
    columns = {task: np.array([answer[task] for answer in answers], np.float32) for task in ("click", "buy")}
    check(columns, predicted)
    status, content = ask(f"{address}/")
    assert status == 200 and content["model"] == "ah" and set(content["columns"]) == set(COLUMNS)


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/predict", b"{", 400, "Expecting"),
        ("/predict", b"[]", 400, "send {"),
        ("/predict", b'{"rows": [3]}', 400, "send {"),
        ("/predict", b'{"rows": [{"user": "a"}]}', 400, "row 0: item: the column is missing"),
        (
            "/predict",
            b'{"rows": [{"user": 3, "item": "a", "price": 1, "history": []}]}',
            400,
            "user: the values must be",
        ),
        (
            "/predict",
            b'{"rows": [{"user": "a", "item": "b", "price": NaN, "history": []}]}',
            400,
            "row 0: price: the value",
        ),
        (
            "/predict",
            b'{"rows": [{"user": "a", "item": "b", "price": 1e999, "history": []}]}',
            400,
            "row 0: price: the value",
        ),
        ("/predict", b"\xff\xff", 400, "decode"),
        ("/predict", b"[" * 100_000, 400, "recursion"),
        ("/predict", b"", 400, "Expecting"),
        ("/other", b"{}", 404, "POST /predict"),
        ("/other", None, 404, "POST /predict"),
    ],
)
def test_the_service_names_the_mistake(path: str, body: bytes | None, status: int, words: str, address: str) -> None:
    answered, content = ask(address + path, body)
    assert answered == status and words in content["error"]


def test_concurrent_requests_get_their_predictions(address: str, run: exfm.Experiment, predicted: pa.Table) -> None:
    rows = rows_seen(run, predicted).select(list(COLUMNS)).to_pylist()
    slices = [(start, start + 1 + start % 7) for start in range(0, 60, 3)]

    def answer(bounds: tuple[int, int]) -> list[float]:
        status, content = ask(f"{address}/predict", json.dumps({"rows": rows[slice(*bounds)]}).encode())
        assert status == 200
        return [prediction["click"] for prediction in content["predictions"]]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(answer, slices))
    expected = predicted["prediction_click"].to_numpy()
    for bounds, clicks in zip(slices, answers, strict=True):
        np.testing.assert_allclose(clicks, expected[slice(*bounds)], rtol=0, atol=1e-6)


def test_a_connection_stays_open_after_a_bad_row_and_not_after_an_unread_body(address: str) -> None:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=300)
    try:
        for rows, status in (([{}], 400), ([ROW], 200), ([], 200)):
            connection.request("POST", "/predict", json.dumps({"rows": rows}))
            answer = connection.getresponse()
            content = json.load(answer)
            assert answer.status == status
            assert len(content.get("predictions", [])) == (len(rows) if status == 200 else 0)
        for length, status in (("-1", 400), ("x", 400), ("10000001", 413)):
            connection.putrequest("POST", "/predict")
            connection.putheader("Content-Length", length)
            connection.endheaders()
            answer = connection.getresponse()
            assert answer.status == status and answer.will_close
            assert (b"at most 10,000,000 bytes" if status == 413 else b"Invalid HTTP request") in answer.read()
    finally:
        connection.close()
