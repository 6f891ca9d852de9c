"""Runs over a Delta table: while it changes, each window has the rows of its version; any split gives the same bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import exfm
from exfm.experiment.run import build_plan
from exfm.scheduling.identity import open_run
from exfm.storage.late_log import LateLog
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from exfm_plugins.sources.delta.source import Delta
from tests.plugins.sources import run_example
from tests.training.logs import (
    DAY_US,
    START_US,
    experiment_dict,
    load,
    make_log,
    predictions,
    supervision,
    train,
    write_log,
)
from tests.training.object_store import s3_server

deltalake = pytest.importorskip("deltalake", reason="needs the package deltalake")


def delta_dict(path: Path, run_dir: Path) -> dict[str, Any]:
    config = experiment_dict(str(path), str(run_dir))
    config["stream"]["source"]["name"] = "delta"
    return config


def one_model(path: Path, run_dir: Path) -> dict[str, Any]:
    config = delta_dict(path, run_dir)
    return config | {"models": {"fm": config["models"]["fm"]}}


def days(log: pa.Table, first: int, end: int) -> pa.Table:
    day = (log.column("event_time").cast(pa.int64()).to_numpy() - START_US) // DAY_US
    return log.filter(pa.array((day >= first) & (day < end)))


def write(path: Path, rows: pa.Table, **options: Any) -> None:
    deltalake.write_deltalake(str(path), rows, **options)


def labels_by_id(path: Path, version: int, window: exfm.sources.Window) -> dict[int, float]:
    """Labels by example id, as deltalake reads a version, of the rows of a window."""
    rows = pa.table(deltalake.DeltaTable(str(path), version=version).scan())
    time = rows.column("event_time").cast(pa.int64()).to_numpy()
    inside = rows.filter(pa.array((time >= window.start_us) & (time < window.end_us)))
    return dict(zip(inside["example_id"].to_pylist(), map(float, inside["click"].to_pylist()), strict=True))


def test_windows_have_the_rows_of_the_version_that_was_current(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, path = make_log(900), tmp_path / "table"

    def table() -> Any:
        return deltalake.DeltaTable(str(path))

    def merged(rows: pa.Table) -> None:
        table().merge(rows, "t.example_id = s.example_id", source_alias="s", target_alias="t") \
            .when_matched_update_all().when_not_matched_insert_all().execute()  # fmt: skip

    def since(day: int) -> str:
        """Ids follow the time."""
        return f"example_id >= {days(log, day, day + 1)['example_id'][0]}"

    with_price = days(log, 4, 5).append_column("added", pa.array(np.arange(days(log, 4, 5).num_rows)))
    changes: list[Callable[[], Any]] = [
        lambda: write(path, days(log, 0, 2), partition_by=["item"]),
        lambda: write(path, days(log, 1, 3), mode="overwrite", predicate=since(1)),
        lambda: table().delete(f"{since(2)} and user < 10"),
        lambda: table().optimize.compact(),
        lambda: write(path, days(log, 3, 4), mode="append"),
        lambda: table().update({"click": "1 - click"}, predicate=f"{since(2)} and user > 30"),
        lambda: write(path, with_price, mode="append", schema_mode="merge"),
        lambda: table().optimize.z_order(["event_time"]),
        lambda: table().delete("user = 20"),
        lambda: merged(days(log, 5, 6).append_column("added", pa.array([None] * days(log, 5, 6).num_rows, pa.int64()))),
        lambda: table().optimize.compact(),
    ]  # fmt: skip
    steps = iter(changes)
    look, read = Delta.time_range, Delta.read
    current: list[int] = []
    versions: dict[int, tuple[exfm.sources.Window, int]] = {}

    def time_range(self: Any) -> exfm.sources.TimeRange:
        """A change of the table comes before each look of the job, until there is none left."""
        change = next(steps, None)
        if change is not None:
            change()
        current.append(table().version())
        return look(self)

    def noted(self: Any, window: exfm.sources.Window, *shard: Any) -> Iterator[pa.RecordBatch]:
        # Later reads of a window count late rows.
        versions.setdefault(window.index, (window, current[-1]))
        return read(self, window, *shard)

    monkeypatch.setattr(Delta, "time_range", time_range)
    monkeypatch.setattr(Delta, "read", noted)
    run_dir = tmp_path / "run"
    experiment = load(tmp_path, one_model(path, run_dir))
    store, plan = Store(str(run_dir)), build_plan(experiment)
    open_run(experiment, store)
    loop = StreamLoop(experiment, store, plan, lambda _: None, ("fm",))
    # As a job that follows the stream does, and without its pauses.
    done = sum(loop.advance(complete_windows_only=True) for _ in changes)
    assert done + loop.advance() == 6
    plan.process_group.close()
    assert len({version for _, version in versions.values()}) > 3
    assert versions.keys() == set(range(6))
    for window, version in versions.values():
        rows = store.committed_predictions("fm", window)
        actual = dict(zip(rows["example_id"].to_pylist(), rows["label_click"].to_pylist(), strict=True))
        assert actual == labels_by_id(path, version, window)
        assert len(actual) == rows.num_rows


def test_a_compaction_makes_no_row_late(tmp_path: Path) -> None:
    log, path = make_log(600), tmp_path / "table"
    for first in range(0, 600, 100):
        write(path, log.slice(first, 100), mode="append")
    config = one_model(path, tmp_path / "run")
    exfm.run(load(tmp_path, config))
    before = {file.name for file in load(tmp_path, config).source.parts()}
    for change in ("compact", "z_order"):
        optimize = deltalake.DeltaTable(str(path)).optimize
        optimize.compact() if change == "compact" else optimize.z_order(["user"])
        experiment = load(tmp_path, config)
        after = {file.name for file in experiment.source.parts()}
        assert not after & before
        before = after
        assert exfm.run(experiment)["data"]["late_rows"] == 0
        late = LateLog(Store(config["run_dir"]).workspace).all("fm")
        assert sum(rows.count for rows in late) == 0
    deltalake.DeltaTable(str(path)).delete("user = 3")
    extra = log.slice(0, 5).set_column(0, "example_id", pa.array(np.arange(5) + 10**6))
    write(path, extra, mode="append")
    assert exfm.run(load(tmp_path, config))["data"]["late_rows"] == 5


def test_any_split_gives_the_same_run_as_parquet(tmp_path: Path) -> None:
    log = make_log(600)
    # Whole hours: many rows have the same time.
    hours = pa.array(log.column("event_time").cast(pa.int64()).to_numpy() // 3_600_000_000 * 3_600_000_000)
    log = log.set_column(1, "event_time", hours.cast(pa.timestamp("us", "UTC")))
    (tmp_path / "parquet").mkdir()
    run_dir = str(tmp_path / "parquet" / "run")
    train(load(tmp_path / "parquet", experiment_dict(write_log(tmp_path / "log", log), run_dir)))
    expected = [predictions(run_dir, model) for model in ("fm", "vm")] + [supervision(run_dir, "fm")]
    for seed, partition in enumerate(([], ["item"])):
        random = np.random.default_rng(seed)
        folder = tmp_path / str(seed)
        rows = log.take(pa.array(random.permutation(log.num_rows)))
        writer = random.integers(0, 3, log.num_rows)
        for number in range(3):
            some = rows.filter(pa.array(writer == number))
            properties = deltalake.WriterProperties(max_row_group_size=int(random.integers(10, 200)))
            write(folder / "log", some, mode="append", writer_properties=properties, partition_by=partition)
        run_dir = str(folder / "run")
        train(load(folder, delta_dict(folder / "log", folder / "run")))
        actual = [predictions(run_dir, model) for model in ("fm", "vm")] + [supervision(run_dir, "fm")]
        for windows, equal in zip(actual, expected, strict=True):
            assert windows.keys() == equal.keys()
            assert all(windows[index].equals(equal[index]) for index in windows)


def test_a_version_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    """A run at a version, gone on with at a later version and then at the newest, ends as a run of the newest."""
    log, path = make_log(600), tmp_path / "table"
    for first in range(0, 6, 2):
        write(path, days(log, first, first + 2), mode="append")
    config = one_model(path, tmp_path / "whole")
    train(load(tmp_path, config))
    expected = predictions(config["run_dir"], "fm")
    config["run_dir"] = str(tmp_path / "steps")
    for version in (0, 1, None):
        config["stream"]["source"]["version"] = version
        train(load(tmp_path, config))
    actual = predictions(config["run_dir"], "fm")
    assert actual.keys() == expected.keys() and all(actual[key].equals(expected[key]) for key in actual)


@pytest.mark.soak
def test_the_example(tmp_path: Path) -> None:
    log = make_log(400).rename_columns(
        ["example_id", "shown_at", "user", "item", "price", "history_items", "click", "buy"]
    )
    # log1p takes no value below zero.
    log = log.set_column(4, "price", pa.array(np.abs(log.column("price").to_numpy())))
    country = [f"c{number % 3}" for number in range(400)]
    path = tmp_path / "impressions"
    write(path, log.append_column("country", pa.array(country)), partition_by=["country"])
    results = run_example("delta", tmp_path, path=path)
    assert results["models"]["fm"]["examples"] == 400


def test_a_table_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and endpoint come from the environment; the rows are those of a table on the disk."""
    pytest.importorskip("moto", reason="needs the package moto")
    import fsspec

    log = make_log(200)
    with s3_server(tmp_path) as environment:
        for name, value in (environment | {"AWS_ALLOW_HTTP": "true"}).items():
            monkeypatch.setenv(name, value)
        filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
        filesystem.mkdir("lake")
        for path in ("s3://lake/impressions", str(tmp_path / "impressions")):
            deltalake.write_deltalake(path, log, partition_by=["item"])
            deltalake.DeltaTable(path).delete("user = 3")
        read = []
        for path in ("s3://lake/impressions", str(tmp_path / "impressions")):
            source = delta_dict(Path("x"), tmp_path)["stream"]["source"] | {"path": path}
            del source["name"]
            stream = Delta(Delta.Config.model_validate(source))
            time = stream.time_range()
            batches = stream.read(exfm.sources.Window(0, time.start_us, time.end_us))
            rows = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches])
            read.append(rows.sort_by("example_id"))
        assert read[0].num_rows and read[0].equals(read[1])
        assert 3 not in read[0]["user"].to_pylist()
