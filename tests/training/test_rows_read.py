"""A job does not read the rows that no model of it sees, and its results are those of a job that reads them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import exfm
from exfm.config.checks import row_conditions
from exfm.config.needed_columns import to_predict, to_train
from exfm.data.stream import ChunkReader
from exfm.sources import Origin, Shard
from tests.training.logs import experiment_dict, load, make_log, rows_by_window, timeless, train


def write(folder: Path, log: pa.Table, statistics: bool) -> str:
    """Writes a file for each value of ``place``, in folders or in a column without statistics."""
    for city in range(3):
        rows = log.filter(pc.equal(log["place"], city))
        path = folder / f"place={city}" if statistics else folder
        path.mkdir(parents=True, exist_ok=True)
        if statistics:
            rows = rows.drop_columns(["place"])
        # The time has statistics in both, because windows are found by them.
        options = True if statistics else ["event_time"]
        pq.write_table(rows, path / f"{city}.parquet", row_group_size=40, write_statistics=options)
    return str(folder)


def make(rows: int) -> pa.Table:
    """The log of the tests with a `place` and few times, so that many are equal."""
    log = make_log(rows)
    hours = pa.array(log.column("event_time").cast(pa.int64()).to_numpy() // 3_600_000_000 * 3_600_000_000)
    log = log.set_column(1, "event_time", hours.cast(pa.timestamp("us", "UTC")))
    return log.append_column("place", pa.array(np.arange(rows) * 7 % 5 % 3))


def config(path: str, run_dir: Path) -> dict[str, Any]:
    whole = experiment_dict(path, str(run_dir), labels=("click", "buy"))
    whole["stream"]["source"]["features"].append({"name": "place", "kind": "categorical", "rows": 8, "ids": "row"})
    whole["models"]["vm"]["control"] = False
    whole["models"]["fm"]["where"] = {"place": [0, 2], "user": list(range(30))}
    whole["models"]["vm"]["where"] = {"place": 0, "item": {"bucket": [0, 1], "of": 3}}
    return whole


def test_results_are_those_of_a_job_that_reads_all_rows(tmp_path: Path) -> None:
    """Predictions, supervision and figures, late labels and rows that come late included."""
    log = make(500)
    shown: list[Any] = []
    for statistics in (True, False):
        folder = tmp_path / str(statistics)
        path = write(folder / "log", log.slice(0, 480), statistics)
        experiment = load(folder, config(path, folder / "run"))
        source = to_train(experiment, experiment.arms).source
        time = source.time_range()
        batches = list(source.read(exfm.sources.Window(0, time.start_us, time.end_us)))
        marked = sum(batch.num_rows for batch in batches if Origin.from_batch(batch).keys_only)
        assert (marked > 100) == statistics and sum(batch.num_rows for batch in batches) == 480
        train(experiment)
        for city in range(3):
            late = log.slice(0, 20).filter(pc.equal(log["place"].slice(0, 20), city))
            late = late.set_column(0, "example_id", pc.add(late["example_id"], 10**6))
            target = Path(path) / f"place={city}" if statistics else Path(path)
            pq.write_table(late.drop_columns(["place"]) if statistics else late, target / f"late{city}.parquet")
        results = timeless(exfm.run(load(folder, config(path, folder / "run"))))
        rows = {}
        for kind, model in (("predictions", "fm"), ("predictions", "vm"), ("supervision", "fm")):
            rows[kind, model] = rows_by_window(str(folder / "run"), kind, model)
        late_rows = [(late["model"], late["window"], late["rows"]) for late in results["data"].pop("late")]
        shown.append((rows, results["data"], late_rows, results["models"]))
    (pruned, data, late_rows, models), (expected, expected_data, expected_late, expected_models) = shown
    assert data == expected_data and late_rows == expected_late and len(late_rows) > 1
    assert models == expected_models
    for key, windows in expected.items():
        assert windows.keys() == pruned[key].keys() and len(windows) > 3
        assert all(rows.equals(pruned[key][window]) for window, rows in windows.items()), key


def test_all_rows_are_read_where_a_model_may_see_them(tmp_path: Path) -> None:
    path = write(tmp_path / "log", make(60), True)

    def marked(changes: dict[str, Any], stream: dict[str, Any]) -> Iterator[int]:
        """Yields the rows that are read for their keys, to train all models and to predict with `vm`."""
        whole = config(path, tmp_path / "run")
        whole["models"]["fm"] |= changes
        whole["stream"] |= stream
        experiment = load(tmp_path, whole)
        arm = next(arm for arm in experiment.arms if arm.name == "vm")
        for job in (to_train(experiment, experiment.arms), to_predict(experiment, arm)):
            time = job.source.time_range()
            batches = job.source.read(exfm.sources.Window(0, time.start_us, time.end_us))
            yield sum(batch.num_rows for batch in batches if Origin.from_batch(batch).keys_only)

    assert all(marked({}, {}))
    assert [rows > 0 for rows in marked({"where": {}}, {})] == [False, True]
    assert [rows > 0 for rows in marked({"where": {"user": {"bucket": 0, "of": 2}}}, {})] == [False, True]
    assert not any(marked({}, {"on_bad_row": "skip"}))


def read(folder: Path, whole: dict[str, Any]) -> int:
    """Reads the stream as a job of all models does, and returns the number of rows."""
    experiment = load(folder, whole)
    job = to_train(experiment, experiment.arms)
    reader = ChunkReader(job.source, job.schema, job.config.stream, row_conditions(job.arms), Shard())
    time = job.source.time_range()
    return sum(chunk.batch.size for chunk in reader.read(exfm.sources.Window(0, time.start_us, time.end_us)))


def test_a_bad_value_stops_the_run_where_a_model_sees_the_row(tmp_path: Path) -> None:
    log = make(60)
    for city in (0, 1):
        bad = pc.and_(pc.equal(log["place"], city), pc.greater(log["example_id"], 100))
        price = pc.if_else(bad, float("nan"), log["price"])
        path = write(tmp_path / str(city), log.set_column(4, "price", price), True)
        if city == 1:
            assert read(tmp_path, config(path, tmp_path)) == 60
            continue
        with pytest.raises(exfm.ConfigError, match="price: the value is missing, NaN or infinite"):
            read(tmp_path, config(path, tmp_path))


def test_a_repeated_id_stops_the_run_wherever_it_is(tmp_path: Path) -> None:
    log = make(60)
    ids = pc.if_else(pc.equal(log["place"], 1), 5, log["example_id"])
    path = write(tmp_path / "log", log.set_column(0, "example_id", ids), True)
    with pytest.raises(exfm.ConfigError, match="example_id: this example id came before"):
        read(tmp_path, config(path, tmp_path))


def test_a_typing_error_in_where_shows_the_values_there_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = config(write(tmp_path / "log", make(60), True), tmp_path / "run")
    whole["models"] = {"fm": whole["models"]["fm"] | {"where": {"place": 7, "user": {"bucket": 0, "of": 2}}}}
    read(tmp_path, whole)
    assert "models.fm.where: none of the first 60 rows" in caplog.text and "place holds 0 (" in caplog.text
    assert "None" not in caplog.text
