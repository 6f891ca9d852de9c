"""`delta`: the rows of a version, as deltalake itself reads them, while the table changes in every way it can."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

import exfm
import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.delta.source import Delta
from exfm_plugins.sources.parquet.source import Parquet
from tests.plugins.tables import FIELDS, MINUTE, SPLITS, assert_same_windows, read, rows_of_writers, table

deltalake = pytest.importorskip("deltalake", reason="needs the package deltalake")


def source(path: Any, **config: Any) -> Delta:
    return Delta(Delta.Config.model_validate(FIELDS | {"path": str(path)} | config))


def write(path: Any, rows: pa.Table, **options: Any) -> None:
    deltalake.write_deltalake(str(path), rows, **options)


class TestDelta(DataSourceTests):
    component = Delta
    plugin = exfm_plugins.sources
    configs = tuple(
        {**FIELDS, "path": "{folder}/" + path, **more}
        for path, more in (("plain", {}), ("places", {"batch_rows": 7}), ("seconds", {"time_unit": "s"}))
    )

    def write(self, folder: Path) -> None:
        times = np.arange(120) // 3 * MINUTE
        write(folder / "plain", table(times.tolist()))
        # Appended against the order of time, a file for each value of `place` and each half.
        for half in (1, 0):
            rows = table(times[60 * half : 60 * half + 60].tolist(), 60 * half)
            write(folder / "places", rows, partition_by=["place"], mode="append")
        deltalake.DeltaTable(folder / "places").delete("example_id = 7")
        write(folder / "seconds", _seconds(times, 0))

    def grow(self, folder: Path) -> None:
        later = np.arange(120, 150) // 3 * MINUTE
        for name in ("plain", "places"):
            write(folder / name, table(later.tolist(), 120), mode="append")
        write(folder / "seconds", _seconds(later, 120), mode="append")


def _seconds(times: Any, first_id: int) -> pa.Table:
    rows = table(times.tolist(), first_id)
    return rows.set_column(1, "event_time", pa.array(times // 10**6))


def unchecked(stream: Delta) -> pa.Table:
    """The rows of the stream as the source yields them, sorted by example id."""
    time = stream.time_range()
    batches = stream.read(exfm.sources.Window(0, time.start_us, time.end_us))
    return pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches]).sort_by("example_id")


def reference(path: Any, version: int | None = None) -> list[dict[str, Any]]:
    """The rows of a version as deltalake's engine reads them, in order of time and example id."""
    whole = pa.table(deltalake.DeltaTable(str(path), version=version).scan())
    return sorted(whole.to_pylist(), key=lambda row: (row["event_time"], row["example_id"]))


def assert_as_deltalake(stream: Delta, path: Any, version: int | None = None) -> None:
    columns = stream.schema().columns
    expected = [{name: row[name] for name in columns} for row in reference(path, version)]
    actual = [{name: row[name] for name in columns} for row in read(stream).to_pylist()]
    for row in actual:
        row["event_time"] = row["event_time"].replace(tzinfo=UTC)
    for row in expected:
        row["event_time"] = row["event_time"].astimezone(UTC)
    assert actual == expected


# ---- the rows of a version -----------------------------------------------------------------------------------------


def test_rows_are_those_of_deltalake_after_every_change(tmp_path: Path) -> None:
    """Appends, an overwrite, deletions, updates, a merge, a compaction, a z-order and a new column, then each again."""
    path = tmp_path / "a table"
    stream = source(path)
    write(path, table([5, 1, 3]), partition_by=["place"])
    assert_as_deltalake(stream, path)
    write(path, table([2, 4, 4], 3), mode="append")
    assert_as_deltalake(stream, path)
    delta = deltalake.DeltaTable(str(path))
    delta.delete("example_id = 1")
    assert_as_deltalake(stream, path)
    delta.update({"click": "1"}, predicate="example_id >= 3")
    assert_as_deltalake(stream, path)
    delta.optimize.compact()
    assert_as_deltalake(stream, path)
    write(path, table([7, 8], 6, price=[0.5, None]), mode="append", schema_mode="merge")
    assert_as_deltalake(stream, path)
    delta = deltalake.DeltaTable(str(path))
    delta.merge(
        table([8, 9], 7, price=[2.0, 3.0]), "t.example_id = s.example_id", source_alias="s", target_alias="t"
    ).when_matched_update_all().when_not_matched_insert_all().execute()
    assert_as_deltalake(stream, path)
    delta.optimize.z_order(["event_time"])
    assert_as_deltalake(stream, path)
    only = pa.concat_tables([table([9], 20, price=[1.0]), table([9], 23, price=[2.0])])
    write(path, only, mode="overwrite", predicate="place = 'São 2'")  # a partition
    assert_as_deltalake(stream, path)
    write(path, table([6], 99, price=[None]).cast(only.schema), mode="overwrite")
    assert_as_deltalake(stream, path)
    newest = deltalake.DeltaTable(str(path)).version()
    for version in range(newest + 1):
        assert_as_deltalake(source(path, version=version), path, version)


def test_an_added_column_is_null_in_older_files(tmp_path: Path) -> None:
    write(tmp_path / "t", table([1, 2]))
    write(tmp_path / "t", table([3], 2, price=[0.5]), mode="append", schema_mode="merge")
    stream = source(tmp_path / "t", features=[{"name": "price", "kind": "dense"}])
    rows = unchecked(stream)
    assert rows["price"].to_pylist() == [None, None, 0.5]
    assert rows.schema.field("price").type == pa.float64()


def test_partition_columns_have_their_types(tmp_path: Path) -> None:
    rows = table([1, 2, 3, 4], day=pa.array([7, 7, None, 12], pa.int32()))
    write(tmp_path / "t", rows, partition_by=["day"])
    stream = source(tmp_path / "t", features=[{"name": "day", "kind": "categorical", "rows": 9}])
    read_rows = unchecked(stream)
    assert read_rows["day"].to_pylist() == [7, 7, None, 12]
    assert read_rows.schema.field("day").type == pa.int32()


_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def _deletion_vector(rows: Sequence[int]) -> dict[str, Any]:
    """A deletion vector inside the log, as the protocol of Delta writes it: a bitmap in Z85."""
    positions = struct.pack("<IIHHI", 12346, 1, 0, len(rows) - 1, 16) + struct.pack(f"<{len(rows)}H", *sorted(rows))
    content = struct.pack("<IQI", 1681511377, 1, 0) + positions
    padded = content + b"\0" * (-len(content) % 4)
    text = ""
    for start in range(0, len(padded), 4):
        word = int.from_bytes(padded[start : start + 4], "big")
        text += "".join(_Z85[word // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return {"storageType": "i", "pathOrInlineDv": text, "sizeInBytes": len(content), "cardinality": len(rows)}


def delete_by_vector(path: Path, rows: Sequence[int]) -> None:
    """Commits a version in which these rows of the newest file are deleted, as Spark does, and no file is rewritten."""
    log = path / "_delta_log"
    commits = sorted(log.glob("*.json"))
    actions = [json.loads(line) for commit in commits for line in commit.read_text().splitlines()]
    added = [action["add"] for action in actions if "add" in action][-1]
    removed = {key: added[key] for key in ("path", "partitionValues", "size")}
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    lines: list[dict[str, Any]] = [
        {"protocol": {"minReaderVersion": 3, "minWriterVersion": 7, **features}},
        {"remove": {**removed, "deletionTimestamp": 1, "dataChange": True, "extendedFileMetadata": True}},
        {"add": {**added, "deletionVector": _deletion_vector(rows)}},
        {"commitInfo": {"timestamp": 1, "operation": "DELETE"}},
    ]
    if "deletionVector" in added:
        lines[1]["remove"]["deletionVector"] = added["deletionVector"]
    (log / f"{len(commits):020}.json").write_text("\n".join(map(json.dumps, lines)))


@pytest.mark.parametrize("partitioned", [False, True])
def test_rows_of_a_deletion_vector_are_not_read(tmp_path: Path, partitioned: bool) -> None:
    path = tmp_path / "a table"
    options: dict[str, Any] = {"partition_by": ["unused"]} if partitioned else {}
    write(path, table([1, 2]), **options)
    # The first row is of 1970 and the last of 3000: neither makes the range of the stream once it is deleted.
    times = [0, *range(10, 20), 32_503_680_000_000_000]
    rows = table(times, 2, unused=["y é"] * 12)
    write(path, rows, mode="append", writer_properties=deltalake.WriterProperties(max_row_group_size=4), **options)
    stream = source(path)
    assert stream.time_range() == exfm.sources.TimeRange(0, times[-1] + 1)
    before = {file.name: file.version for file in stream.parts()}
    delete_by_vector(path, [0, 3, 4, 11])
    assert stream.time_range() == exfm.sources.TimeRange(1, 20)
    assert_as_deltalake(stream, path)
    assert read(stream)["example_id"].to_pylist() == [0, 1, 3, 4, *range(7, 13)]
    after = {file.name: file.version for file in stream.parts()}
    assert after.keys() == before.keys() and sum(after[name] != before[name] for name in after) == 1
    delete_by_vector(path, [*range(4), 4, 11])
    assert read(stream)["example_id"].to_pylist() == [0, 1, *range(7, 13)]
    assert {file.name for file in stream.parts()} == before.keys()
    assert stream.next_event_us(3) == 14
    # Another version of the parts, although no file is new: a window that they overlap is compared again.
    assert {file.name: file.version for file in stream.parts()} != after
    delete_by_vector(path, range(12))
    assert read(stream)["example_id"].to_pylist() == [0, 1] and len(stream.parts()) == 1


@settings(max_examples=25)
@given(case=SPLITS)
def test_any_split_has_the_same_rows_as_parquet(tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]) -> None:
    """Permutations and splits into commits, files, row groups and partitions: the same bits through either source."""
    folder = tmp_path_factory.mktemp("split")
    whole = table(case["times"])
    pq.write_table(whole, folder / "whole.parquet")
    properties = deltalake.WriterProperties(max_row_group_size=case["group_rows"])
    partition: dict[str, Any] = {"partition_by": ["place"]} if case["partitioned"] else {}
    for number, file in enumerate(rows_of_writers(whole, case)):
        write(folder / "delta", file, mode="append", writer_properties=properties, **partition)
        (folder / "parquet").mkdir(exist_ok=True)
        pq.write_table(file, folder / "parquet" / f"{number}.parquet", row_group_size=case["group_rows"])
    if case["compacted"]:
        deltalake.DeltaTable(folder / "delta").optimize.compact()
    small = {"batch_rows": case["batch_rows"]}
    others = [
        Parquet(Parquet.Config.model_validate(FIELDS | small | {"path": str(folder / path)}))
        for path in ("parquet", "whole.parquet")
    ]
    assert_same_windows(source(folder / "delta", **small), others, case["length"])


# ---- versions ------------------------------------------------------------------------------------------------------


def test_time_travel(tmp_path: Path) -> None:
    path = tmp_path / "t"
    for number in range(3):
        write(path, table([number], number), mode="append")
    for number in range(3):
        # deltalake takes the time of a version from its file.
        os.utime(path / "_delta_log" / f"{number:020}.json", (1_700_000_000 + number * 60,) * 2)
    for version in range(3):
        assert read(source(path, version=version))["example_id"].to_pylist() == list(range(version + 1))
        for second in (0, 59):
            at = datetime.fromtimestamp(1_700_000_000 + version * 60 + second, UTC).isoformat()
            assert read(source(path, timestamp=at))["example_id"].to_pylist() == list(range(version + 1))
    with pytest.raises(ValueError, match=r"has no version at 2020-.* the first that its log has is of 2023-11-14T"):
        source(path, timestamp="2020-01-01T00:00:00Z").time_range()
    pinned, newest = source(path, version=1), source(path)
    assert [len(stream.parts()) for stream in (pinned, newest)] == [2, 3]
    write(path, table([9], 9), mode="append")
    assert [len(stream.parts()) for stream in (pinned, newest)] == [2, 4]
    with pytest.raises(ValidationError, match="version and timestamp: both"):
        source(path, version=1, timestamp="2026-01-31T00:00:00Z")


def test_reads_are_of_the_version_of_the_last_look(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write(path, table([1, 2, 3]))
    stream = source(path)
    stream.time_range()
    deltalake.DeltaTable(path).delete("example_id = 1")
    window = exfm.sources.Window(0, 0, 10)
    assert read(stream, window)["example_id"].to_pylist() == [0, 1, 2]
    stream.parts()
    assert read(stream, window)["example_id"].to_pylist() == [0, 2]


def test_a_job_reads_its_columns_alone(tmp_path: Path) -> None:
    write(tmp_path / "t", table([1, 2]))
    stream = source(tmp_path / "t")
    fewer = stream.schema().model_copy(update={"features": stream.schema().features[:1]})
    [batch] = stream.select(fewer).read(exfm.sources.Window(0, 0, 9))
    assert set(batch.schema.names) == {"example_id", "event_time", "item", "click"}


def test_partitions_that_no_model_sees_are_read_for_their_keys(tmp_path: Path) -> None:
    write(
        tmp_path / "t", table([1, 2, 3, 4], day=pa.array([7, 7, None, 12], pa.int32())), partition_by=["day", "place"]
    )
    days = [{"name": name, "kind": "categorical", "rows": 9} for name in ("day", "place")]
    stream = source(tmp_path / "t", features=days).select_rows([{"day": (7, 8), "place": ("São 1",)}, {"day": (12,)}])
    whole: list[int] = []
    for batch in stream.read(exfm.sources.Window(0, 0, 9)):
        if not exfm.sources.Origin.from_batch(batch).keys_only:
            whole += batch["example_id"].to_pylist()
    # The third row has no day: nothing bounds a null.
    assert sorted(whole) == [1, 2, 3]


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"folder": "nowhere"}, ["path: there is no Delta table at", "nowhere"]),
        ({"version": 7}, ["version: the table at", "no version 7; the newest is 0"]),
        ({"example_id": "exmple_id"}, ["no column 'exmple_id'. Did you mean 'example_id'"]),
        ({"features": [{"name": "itme", "kind": "dense"}]}, ["no column 'itme'. Did you mean 'item'"]),
        ({"event_time": "item"}, ["'item' is int64", "a timestamp", "time_unit"]),
        ({"time_unit": "ms"}, ["'event_time' is timestamp[us", "an integer"]),
        ({"event_time": "day"}, ["'day', the time of a row, must not be a partition column"]),
        ({"event_time": "never"}, ["'never' is empty in every file"]),
    ],
)
def test_a_table_that_does_not_fit_is_explained(tmp_path: Path, config: dict[str, Any], words: list[str]) -> None:
    never, day = pa.nulls(2, pa.timestamp("us", "UTC")), pa.array([1, 2], pa.timestamp("us", "UTC"))
    write(tmp_path / "t", table([1, 2], never=never, day=day), partition_by=["day"])
    folder, fields = config.get("folder", "t"), {key: value for key, value in config.items() if key != "folder"}
    with pytest.raises(ValueError) as error:
        source(tmp_path / folder, **fields).time_range()
    assert all(word in str(error.value) for word in ["delta: ", *words]), str(error.value)


def test_a_table_or_version_that_may_come_is_waited_for(tmp_path: Path) -> None:
    stream, pinned = source(tmp_path / "t"), source(tmp_path / "t", version=1)
    with pytest.raises(exfm.components.NotYetError, match="there is no Delta table"):
        stream.time_range()
    write(tmp_path / "t", table([]))
    with pytest.raises(exfm.components.NotYetError, match="have no rows"):
        stream.time_range()
    with pytest.raises(exfm.components.NotYetError, match="no version 1"):
        pinned.time_range()
    write(tmp_path / "t", table([1]), mode="append")
    assert stream.time_range() == pinned.time_range() == exfm.sources.TimeRange(1, 2)


def test_a_vacuumed_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t"
    write(path, table([1, 2]))
    stream = source(path)
    stream.time_range()
    write(path, table([3], 7), mode="overwrite")
    deltalake.DeltaTable(path).vacuum(0, dry_run=False, enforce_retention_duration=False)
    window = exfm.sources.Window(0, 0, 9)
    with pytest.raises(exfm.components.NotYetError, match=r"parquet is gone.* vacuumed"):
        read(stream, window)
    stream.time_range()
    assert read(stream, window)["example_id"].to_pylist() == [7]
    with pytest.raises(ValueError, match=r"parquet is gone.* vacuumed") as error:
        source(path, version=0).time_range()
    assert not isinstance(error.value, exfm.components.NotYetError)


def test_a_feature_that_is_not_read_is_named(tmp_path: Path) -> None:
    write(tmp_path / "t", table([1, 2]))
    first = tmp_path / "t" / "_delta_log" / f"{0:020}.json"
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    for line in lines:
        if "protocol" in line:
            line["protocol"] = {"minReaderVersion": 2, "minWriterVersion": 5}
        if "metaData" in line:
            line["metaData"]["configuration"] = {"delta.columnMapping.mode": "name"}
            schema = json.loads(line["metaData"]["schemaString"])
            for number, column in enumerate(schema["fields"]):
                column["metadata"] = {
                    "delta.columnMapping.id": number + 1,
                    "delta.columnMapping.physicalName": f"col-{number}",
                }
            line["metaData"]["schemaString"] = json.dumps(schema)
    first.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match=r"needs columnMapping of its readers, which exfm does not read"):
        source(tmp_path / "t").time_range()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "deltalake", None)
    with pytest.raises(ValueError, match=r"needs the package deltalake: pip install 'exfm\[delta\]'"):
        source("anywhere").time_range()
