"""Rows of a window are sorted by time and example id, however they come and however little memory there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
from exfm.data import time_order
from exfm.data.time_order import in_time_order
from exfm.sources import Origin
from exfm_plugins.sources.parquet.source import Parquet
from tests.plugins.tables import FIELDS
from tests.plugins.tables import table as delta_table
from tests.training.logs import DAY_US, START_US, experiment_dict, load, make_log, rows_by_window, train

SCHEMA = exfm.schema.FeatureSchema(
    features=(exfm.schema.CategoricalFeature(name="item", rows=10),), labels=(exfm.schema.Label(name="click"),)
)


def table(times: list[int], ids: list[int]) -> pa.RecordBatch:
    """Rows with a column that depends on their id."""
    columns: dict[str, Any] = {
        "example_id": pa.array(ids, pa.int64()),
        "event_time": pa.array(times, pa.timestamp("us")),
        "item": pa.array([f"i{i % 7}" if i % 3 else None for i in ids], pa.string()),
        "click": pa.array([float(i % 2) for i in ids]),
    }
    return pa.RecordBatch.from_pydict(columns)


@given(
    times=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=8),
    at_once=st.integers(1, 9),
    memory=st.sampled_from([0, 200, 1 << 20]),
    data=st.data(),
)
@settings(max_examples=200)
def test_any_batches_give_the_sorted_rows(
    times: list[int], cuts: list[int], at_once: int, memory: int, data: st.DataObject
) -> None:
    ids = data.draw(st.permutations(range(len(times))))
    ends = [0, *sorted(cut for cut in cuts if cut < len(times)), len(times)]
    batches = []
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        # The largest time before which no later batch has a row, or an earlier time, or none.
        limit = min([*times[end:], 13])
        next_us = data.draw(st.one_of(st.none(), st.integers(-1, limit)))
        batches.append(Origin(f"{number}", 0, next_us).mark(table(times[start:end], list(ids[start:end]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_order, "_AT_ONCE", at_once)
        read = list(in_time_order(batches, SCHEMA, memory))
    rows = [row for batch in read for row in batch.to_pylist()]
    expected = sorted(table(times, list(ids)).to_pylist(), key=lambda row: (row["event_time"], row["example_id"]))
    assert rows == expected


def test_rows_are_passed_on_as_soon_as_none_can_come_before_them() -> None:
    passed: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        yield Origin("a", 0, 3).mark(table([1, 2, 5], [0, 1, 2]))
        assert passed == [0, 1]
        yield Origin("b", 0, 6).mark(table([3, 4], [3, 4]))
        assert passed == [0, 1, 3, 4, 2]

    for rows in in_time_order(batches(), SCHEMA):
        passed += rows.column("example_id").to_pylist()
    assert passed == [0, 1, 3, 4, 2]


def test_more_rows_than_memory_wait_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    written: list[Path] = []
    mapped = time_order._mapped

    def spy(path: Path) -> Iterator[Any]:
        written.append(path)
        return mapped(path)

    monkeypatch.setattr(time_order, "_mapped", spy)
    random = np.random.default_rng(0)
    times = random.integers(0, 1000, 20_000)
    batches = [table(times[i : i + 500].tolist(), list(range(i, i + 500))) for i in range(0, 20_000, 500)]
    rows = pa.Table.from_batches(list(in_time_order(batches, SCHEMA, memory_bytes=100_000)))
    assert written and not list(tmp_path.iterdir())  # the files have no name any more
    assert rows.column("example_id").to_pylist() == np.lexsort((np.arange(20_000), times)).tolist()


# ---- the same rows in other files ----------------------------------------------------------------------------------


def write_split(folder: Path, log: pa.Table, random: np.random.Generator, kind: str) -> None:
    """Writes the rows of a log to several files."""
    if kind == "shuffled":
        log = log.take(pa.array(random.permutation(log.num_rows)))
    writers = 1 if kind in ("single", "shuffled") else 3
    writer = random.integers(0, writers, log.num_rows)
    for number in range(writers):
        rows = log.filter(pa.array(writer == number))
        day = (rows.column("event_time").cast(pa.int64()).to_numpy() - START_US) // DAY_US
        for only in sorted(set(day.tolist())) if kind == "partitions" else [None]:
            path = folder / (f"day={only}" if only is not None else ".") / f"{random.integers(10**6)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = rows if only is None else rows.filter(pa.array(day == only))
            pq.write_table(kept, path, row_group_size=int(random.integers(40, 400)))


def test_any_split_of_the_rows_gives_the_same_run(tmp_path: Path) -> None:
    log = make_log(900)
    # Whole hours: many rows have the same time.
    hours = pa.array(log.column("event_time").cast(pa.int64()).to_numpy() // 3_600_000_000 * 3_600_000_000)
    log = log.set_column(1, "event_time", hours.cast(pa.timestamp("us", "UTC")))
    expected: dict[str, Any] = {}
    for seed, kind in enumerate(["single", "writers", "shuffled", "partitions", "writers"]):
        folder = tmp_path / f"{seed}-{kind}"
        write_split(folder / "log", log, np.random.default_rng(seed), kind)
        train(load(folder, experiment_dict(str(folder / "log"), str(folder / "run"))))
        read = {name: rows_by_window(str(folder / "run"), name, "fm") for name in ("predictions", "supervision")}
        expected = expected or read
        for name, windows in read.items():
            assert windows.keys() == expected[name].keys()
            for window, rows in windows.items():
                assert rows.equals(expected[name][window]), (kind, name, window)


layouts = st.fixed_dictionaries(
    {
        # Few times: ties are common, across files and folders too.
        "times": st.lists(st.integers(0, 9), min_size=1, max_size=30),
        "seed": st.integers(0, 999),
        # Columns in the folders of each writer's files.
        "writers": st.lists(st.lists(st.sampled_from(["place", "hour"]), unique=True), min_size=1, max_size=3),
        "group_rows": st.integers(1, 9),
        "batch_rows": st.integers(1, 7),
        "threads": st.integers(1, 2),
        "length": st.integers(1, 11),
    }
)


@settings(max_examples=20)
@given(layout=layouts)
def test_any_mix_of_folders_files_and_row_groups_has_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, layout: dict[str, Any]
) -> None:
    """Writers put any columns into folders, none or both in any order, and the others into files of any row groups."""
    folder = tmp_path_factory.mktemp("layout")
    random = np.random.default_rng(layout["seed"])
    log = delta_table(layout["times"])
    places = [[None, "São 0", "a=b/c"][number % 3] for number in range(log.num_rows)]
    log = log.set_column(4, "place", pa.array(places, pa.string()))
    log = log.append_column("hour", pa.array(np.arange(log.num_rows) * 5 // 3 % 4))
    pq.write_table(log, folder / "whole.parquet")
    rows = log.take(pa.array(random.permutation(log.num_rows)))
    writer = random.integers(0, len(layout["writers"]), log.num_rows)
    for number, columns in enumerate(layout["writers"]):
        some = rows.filter(pa.array(writer == number))
        keys = list(zip(*(some[column].to_pylist() for column in columns), strict=True)) or [()] * some.num_rows
        for key in set(keys):
            path = folder / "log"
            for column, value in zip(columns, key, strict=True):
                path /= f"{column}={'__HIVE_DEFAULT_PARTITION__' if value is None else quote(str(value), safe='')}"
            path.mkdir(parents=True, exist_ok=True)
            inside = some.filter(pa.array([other == key for other in keys])).drop_columns(columns)
            pq.write_table(inside, path / f"{number}.parquet", row_group_size=layout["group_rows"])
    features = [*FIELDS["features"], {"name": "hour", "kind": "categorical", "rows": 24}]
    options = {"batch_rows": layout["batch_rows"], "decode_threads": layout["threads"]}
    split, whole = (
        Parquet(Parquet.Config.model_validate(FIELDS | {"features": features, "path": str(folder / path), **options}))
        for path in ("log", "whole.parquet")
    )
    time = whole.time_range()
    assert split.time_range() == time
    for start in range(time.start_us, time.end_us, layout["length"]):
        window = exfm.sources.Window(0, start, start + layout["length"])
        assert values(split, window) == values(whole, window)


def values(source: exfm.DataSource, window: exfm.sources.Window) -> list[dict[str, Any]]:
    """The values of a window in order, and no types: a column of a folder without any value has an arbitrary type."""
    rows: list[dict[str, Any]] = []
    for batch in source.read(window):
        rows += batch.select(sorted(source.schema().columns)).to_pylist()
    return sorted(rows, key=lambda row: (row["event_time"], row["example_id"]))


def test_ids_may_be_text_bytes_or_uuids_and_may_be_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = make_log(300)
    keys = [f"{number:032x}" for number in range(300)]
    forms = {
        "text": pa.array(keys),
        "dictionary": pa.array(keys).dictionary_encode(),
        "bytes": pa.array([bytes.fromhex(key) for key in keys]),
        "uuid": pa.array([bytes.fromhex(key) for key in keys], pa.uuid()),
        "missing": None,
    }
    ids: dict[str, list[int]] = {}
    for name, column in forms.items():
        folder = tmp_path / name
        (folder / "log").mkdir(parents=True)
        rows = log.drop_columns(["example_id"])
        if column is not None:
            rows = rows.append_column("example_id", column)
        pq.write_table(rows, folder / "log" / "a.parquet")
        config = experiment_dict(str(folder / "log"), str(folder / "run"))
        config["models"] = {"vm": {**config["models"]["vm"], "transfer": [], "control": False}}
        train(load(folder, config))
        windows = rows_by_window(config["run_dir"], "predictions", "vm")
        ids[name] = [id for rows in windows.values() for id in rows.column("example_id").to_pylist()]
        assert len(set(ids[name])) == 300
    assert sorted(ids["text"]) == sorted(ids["dictionary"])
    assert sorted(ids["bytes"]) == sorted(ids["uuid"])
    assert sorted(ids["text"]) == sorted(exfm.sources.example_ids(pa.array(keys)).to_pylist())
    assert "an example is known by its file and row" in caplog.text
    config = experiment_dict(str(tmp_path / "text" / "log"), str(tmp_path / "picked"))
    config["models"] = {"vm": {**config["models"]["vm"], "transfer": [], "control": False}}
    config["models"]["vm"]["where"] = {"example_id": keys[10:13]}
    train(load(tmp_path, config))
    picked = pa.concat_tables(rows_by_window(config["run_dir"], "predictions", "vm").values())
    assert sorted(picked.column("example_id").to_pylist()) == sorted(
        exfm.sources.example_ids(pa.array(keys[10:13])).to_pylist()
    )
    with pytest.raises(exfm.ConfigError, match=r"has a column 'exampel_id'.*Did you mean 'example_id'"):
        config = experiment_dict(str(tmp_path / "text" / "log"), str(tmp_path / "other"))
        config["stream"]["source"]["example_id"] = "exampel_id"
        train(load(tmp_path, config))
