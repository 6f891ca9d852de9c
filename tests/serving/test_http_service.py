"""`exfm serve`: concurrent requests, limits, health, metrics, new weights, and a log that a source reads back."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import exfm
import exfm.serving
from exfm.serving.export import Form, export

pytest.importorskip("fastapi")
from exfm.serving.http.app import Limits, build_app
from exfm.serving.http.metrics import Metrics
from exfm.serving.http.prediction_log import PredictionLog
from exfm.serving.http.server import Server
from exfm.serving.http.service import Service

SECONDS = 0.5
LIMITS = Limits(rows=50, bytes=100_000, requests=4, seconds=SECONDS)
COLUMNS = ("user", "item", "price", "history")


@dataclass(frozen=True)
class Running:
    """A service that runs, on a copy of an export."""

    folder: Path
    address: str
    log: Path

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def ask(self, path: str, rows: object = None, body: bytes | None = None) -> tuple[int, Any]:
        """Asks, with the rows of a prediction or a body; returns status and content."""
        if rows is not None:
            body = json.dumps({"rows": rows}).encode()
        try:
            with urllib.request.urlopen(f"{self.address}{path}", body, timeout=60) as answer:
                data = answer.read()
                return answer.status, json.loads(data) if answer.headers["Content-Type"] == "application/json" else data
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    def metric(self, name: str) -> float:
        lines = self.ask("/metrics")[1].decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[-1])


@pytest.fixture(scope="module")
def exported(run: exfm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served_http") / "out"
    export(run, "ah", str(folder), Form(compiled=False), at="1", compute_figures=False)
    return folder


@pytest.fixture(scope="module")
def running(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder, log = tmp_path_factory.mktemp("live") / "out", tmp_path_factory.mktemp("logged")
    shutil.copytree(exported, folder)
    metrics, prediction_log = Metrics(), PredictionLog(str(log), every_s=0.2)
    service = Service(exfm.serving.load(str(folder)), 64, 0.01, 0.1, metrics.predicted)
    metrics.watch(service, prediction_log)
    addresses: list[str] = []
    listening = threading.Event()

    def listen(address: str) -> None:
        addresses.append(address)
        listening.set()

    server = Server(build_app(service, metrics, LIMITS, prediction_log), "127.0.0.1", 0, LIMITS, listen)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert listening.wait(60)
    yield Running(folder, addresses[0], log)
    server.should_exit = True
    thread.join(60)
    assert not thread.is_alive() and not service.is_alive


@pytest.fixture(scope="module")
def rows(run: exfm.Experiment) -> list[dict[str, Any]]:
    window = exfm.sources.Window(0, run.source.time_range().start_us, run.source.time_range().end_us)
    return next(iter(run.source.read(window))).slice(0, 40).select(list(COLUMNS)).to_pylist()


def expected(folder: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    answer = exfm.serving.load(str(folder)).predict(rows)
    return [{task: float(values[number]) for task, values in answer.items()} for number in range(len(rows))]


def test_concurrent_clients_get_their_own_predictions_and_mistakes(
    running: Running, exported: Path, rows: list[dict[str, Any]]
) -> None:
    right = expected(exported, rows)

    def client(number: int) -> None:
        if number % 5 == 4:
            status, content = running.ask("/predict", [{**rows[number], "price": None}])
            assert status == 400 and "row 0: price: the value is missing" in content["error"]
            return
        status, content = running.ask("/predict", rows[number : number + 3])
        assert status == 200 and content["snapshot"] == 1 and content["model"] == "ah"
        for answer, true in zip(content["predictions"], right[number : number + 3], strict=True):
            assert answer == pytest.approx(true, abs=1e-6)

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(client, range(30)))
    assert running.metric('exfm_requests_total{status="200"}') >= 24
    assert running.metric("exfm_requests_running") == 0 and running.metric("exfm_snapshot") == 1
    assert running.ask("/predict", [])[1]["predictions"] == []


def test_candidates_of_a_request_are_predicted_and_logged_as_rows(
    running: Running, exported: Path, rows: list[dict[str, Any]]
) -> None:
    context = {name: rows[0][name] for name in ("user", "history")}
    candidates = [{"item": row["item"], "price": row["price"], "example_id": 7_000 + n} for n, row in enumerate(rows)]
    body = {"context": context, "candidates": candidates}
    status, content = running.ask("/predict_request", body=json.dumps(body).encode())
    assert status == 200 and content["example_ids"] == [row["example_id"] for row in candidates]
    for answer, true in zip(content["predictions"], expected(exported, [row | context for row in rows]), strict=True):
        assert answer == pytest.approx(true, abs=1e-6)
    wrong = {"context": context, "candidates": [*candidates, {"item": "a", "price": 1, "user": "b"}]}
    status, content = running.ask("/predict_request", body=json.dumps(wrong).encode())
    assert status == 400 and "user: the column is in the context, and in row 40 of the candidates" in content["error"]
    status, content = running.ask("/predict_request", body=b'{"rows": []}')
    assert status == 400 and 'send {"context"' in content["error"]
    until = time.monotonic() + 60
    while (logged := log_of(running, 7_000, 7_040)).num_rows < 40 and time.monotonic() < until:
        time.sleep(0.05)
    assert logged["item"].to_pylist() == [row["item"] for row in rows]
    assert logged["history"].to_pylist() == [context["history"]] * 40


def log_of(running: Running, first: int, end: int) -> pa.Table:
    """Reads the logged rows with some example ids."""
    files = sorted(running.log.rglob("*.parquet"))
    if not files:
        return pa.table({})
    table = pa.concat_tables(map(pq.read_table, files), promote_options="permissive")
    ids = table["example_id"].to_numpy()
    return table.filter(pa.array((ids >= first) & (ids < end))).sort_by("example_id")


def test_requests_beyond_the_limits_are_refused(running: Running, rows: list[dict[str, Any]]) -> None:
    for body, status, words in (
        (b"{", 400, "the body is not JSON"),
        (b"\xff\xff", 400, "the body is not JSON"),
        (b"[" * 50_000, 400, "the body is not JSON"),
        (b"[]", 400, 'send {"rows": ['),
        (b'{"rows": [3]}', 400, 'send {"rows": ['),
        (b" " * 100_001, 413, "at most 100,000 bytes"),
        (json.dumps({"rows": [rows[0]] * 51}).encode(), 413, "at most 50 rows; given: 51"),
    ):
        answered, content = running.ask("/predict", body=body)
        assert answered == status and words in content["error"]
    assert running.ask("/elsewhere")[0] == 404 and running.ask("/predict")[0] == 405
    assert running.ask("/predict", rows[:1])[0] == 200


HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


@pytest.mark.parametrize("beginning", [b"", b"POST /predict HTTP/1.1\r\nHo", HEAD + b'{"rows"'])
def test_slow_clients_hold_no_place_for_ever(beginning: bytes, running: Running, rows: list[dict[str, Any]]) -> None:
    slow = [socket.create_connection(("127.0.0.1", running.port), timeout=30) for _ in range(LIMITS.requests)]
    for client in slow:
        client.sendall(beginning)
    if beginning.startswith(HEAD):
        time.sleep(SECONDS / 4)
        status, content = running.ask("/predict", rows[:1])
        assert status == 503 and "4 requests are being answered" in content["error"]
        assert running.ask("/health")[0] == 200
    for client in slow:
        answer = b""
        with client:
            while piece := client.recv(65_536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 408") == beginning.startswith(HEAD)
    assert running.ask("/predict", rows[:1])[0] == 200


def test_the_log_is_a_log_of_impressions(running: Running, rows: list[dict[str, Any]], tmp_path: Path) -> None:
    pytest.importorskip("duckdb")
    status, content = running.ask(
        "/predict", [{**row, "example_id": 1_000 + number} for number, row in enumerate(rows)]
    )
    assert status == 200 and content["example_ids"] == list(range(1_000, 1_040))
    others = running.ask("/predict", rows[:2])[1]["example_ids"]
    assert len(set(others)) == 2
    deadline_s = time.monotonic() + 60
    while True:
        logged = ds.dataset(running.log, format="parquet").to_table()
        logged_rows = logged.filter(ds.field("example_id").isin(content["example_ids"])).sort_by("example_id")
        if logged_rows.num_rows == 40 and set(others) <= set(logged["example_id"].to_pylist()):
            break
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert running.metric("exfm_log_rows_left_out") == 0
    assert logged_rows.select(list(COLUMNS)).to_pylist() == rows
    for task in ("click", "buy"):
        answered = np.array([row[task] for row in content["predictions"]], np.float32)
        np.testing.assert_array_equal(logged_rows[f"prediction_{task}"].to_numpy(), answered)
    # Clicks that are reported by example id are the labels of the logged rows.
    clicked = logged_rows.slice(0, 7)
    clicks = pa.table({"example_id": clicked["example_id"], "at": clicked["served_at"]})
    end = pa.table({"example_id": [1], "at": pa.array([logged_rows["served_at"][-1].value + 10**9], clicks["at"].type)})
    pq.write_table(pa.concat_tables([clicks, end]), tmp_path / "clicks.parquet")
    (tmp_path / "next.yaml").write_text(f"""
name: next
run_dir: {tmp_path}/run
stream:
  window: 1h
  source:
    name: joined
    path: {running.log}
    example_id: example_id
    event_time: served_at
    logs: {{clicks: {{path: {tmp_path}/clicks.parquet, time: at}}}}
    labels_from: {{click: {{log: clicks, key: example_id, within: 1m}}}}
    labels: [{{name: click, delay: 1m}}]
    features: [{{name: user, kind: categorical, rows: 100}}, {{name: price, kind: dense}}]
models: {{vm: {{backbone: {{name: mlp}}}}}}
""")
    source = exfm.load_experiment(str(tmp_path / "next.yaml")).source
    span = source.time_range()
    read = pa.Table.from_batches(list(source.read(exfm.sources.Window(0, span.start_us, span.end_us))))
    labels = dict(zip(read["example_id"].to_pylist(), read["click"].to_pylist(), strict=True))
    assert [labels[example] for example in range(1_000, 1_040)] == [1] * 7 + [0] * 33


def test_new_weights_are_taken_over_while_requests_run(
    running: Running, run: exfm.Experiment, rows: list[dict[str, Any]]
) -> None:
    ended, answered = threading.Event(), list[tuple[int, int, tuple[float, ...]]]()

    def ask_on() -> None:
        while not ended.is_set():
            status, content = running.ask("/predict", rows[:3])
            answered.append((status, content["snapshot"], tuple(row["click"] for row in content["predictions"])))

    asking = threading.Thread(target=ask_on)
    asking.start()
    try:
        export(run, "ah", str(running.folder), compute_figures=False, weights_only=True)
        newest = json.loads((running.folder / "inputs.json").read_text())["snapshot"]
        deadline_s = time.monotonic() + 60
        while running.ask("/health") != (200, {"snapshot": newest, "refresh_error": ""}):
            assert time.monotonic() < deadline_s
    finally:
        ended.set()
        asking.join()
    running.ask("/predict", rows[:3])
    assert {status for status, _, _ in answered} == {200}
    # Each snapshot has one prediction of each row: no answer mixes snapshots.
    assert len({(snapshot, answer) for _, snapshot, answer in answered}) == len(
        {snapshot for _, snapshot, _ in answered}
    )
    described = running.folder / "inputs.json"
    whole = described.read_text()
    described.write_text("{}")
    deadline_s = time.monotonic() + 60
    while "not the description of an export" not in running.ask("/health")[1]["refresh_error"]:
        assert time.monotonic() < deadline_s
    assert running.ask("/predict", rows[:3])[1]["snapshot"] == newest
    described.write_text(whole)


def test_a_failure_of_the_model_tells_the_client_nothing(exported: Path, rows: list[dict[str, Any]]) -> None:
    predictor = exfm.serving.load(str(exported))

    def fail(*tensors: Any) -> Any:
        raise RuntimeError("a secret of the model")

    object.__setattr__(predictor.model, "program", fail)
    service = Service(predictor, 64, 0.0, 0)
    service.start()
    futures = [service.submit(rows[:1]) for _ in range(3)]
    for future in futures:
        with pytest.raises(RuntimeError, match="a secret"):
            future.result(30)
    service.stop()
