"""`iceberg`: the rows of a snapshot, as pyiceberg itself reads them, while the table changes in every way it can."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterable, Iterator, Sequence
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
from exfm.sources import StreamPart
from exfm.testing import DataSourceTests
from exfm_plugins.sources.iceberg.source import Iceberg
from exfm_plugins.sources.parquet.source import Parquet
from tests.plugins.tables import FIELDS, MINUTE, SPLITS, assert_same_windows, read, rows_of_writers, table

pytest.importorskip("pyiceberg", reason="needs the package pyiceberg")
pytest.importorskip("sqlalchemy", reason="needs a SQLite catalog: pyiceberg[sql-sqlite]")

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.typedef import Record
from pyiceberg.types import DoubleType, IntegerType, LongType, TimestamptzType


def properties(folder: Any) -> dict[str, str]:
    return {"type": "sql", "uri": f"sqlite:///{folder}/catalog.db", "warehouse": f"file://{folder}"}


class Lake:
    """A catalog in a folder, and its tables."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.catalog = SqlCatalog("default", **properties(folder))
        self.catalog.create_namespace_if_not_exists("ads")

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *error: object) -> None:
        self.catalog.engine.dispose()

    def table(self, name: str = "log") -> Any:
        return self.catalog.load_table(f"ads.{name}")

    def write(self, rows: pa.Table, name: str = "log", partitioned: bool = False, group_rows: int = 1000) -> Any:
        """Appends rows to a table, after creating it."""
        if not self.catalog.table_exists(f"ads.{name}"):
            options = {"write.parquet.row-group-limit": str(group_rows)}
            created = self.catalog.create_table(f"ads.{name}", rows.schema, properties=options)
            if partitioned:
                with created.update_spec() as update:
                    update.add_identity("place")
        self.table(name).append(rows)
        return self.table(name)

    def rename(self, **names: str) -> None:
        for old, new in names.items():
            with self.table().update_schema() as schema:
                schema.rename_column(old, new)

    def add(self, **kinds: Any) -> None:
        with self.table().update_schema() as schema:
            for name, kind in kinds.items():
                schema.add_column(name, kind)

    def source(self, name: str = "log", **config: Any) -> Iceberg:
        fields = FIELDS | {"table": f"ads.{name}", "properties": properties(self.folder)}
        return Iceberg(Iceberg.Config.model_validate(fields | config))


@pytest.fixture
def lake(tmp_path: Path) -> Iterator[Lake]:
    with Lake(tmp_path) as lake:
        yield lake


class TestIceberg(DataSourceTests):
    component = Iceberg
    plugin = exfm_plugins.sources
    configs = (
        {
            **FIELDS,
            "table": "ads.places",
            "properties": properties("{folder}"),
            "batch_rows": 7,
            "decode_threads": 2,
        },
    )

    def write(self, folder: Path) -> None:
        times = np.arange(120) // 3 * MINUTE
        with Lake(folder) as lake:
            # Appended against the order of time, a file for each value of `place` and each half.
            for half in (1, 0):
                rows = table(times[60 * half : 60 * half + 60].tolist(), 60 * half)
                lake.write(rows, "places", partitioned=True)
            delete_rows(lake.table("places"), "São 1", [2])

    def grow(self, folder: Path) -> None:
        later = np.arange(120, 150) // 3 * MINUTE
        with Lake(folder) as lake:
            lake.write(table(later.tolist(), 120), "places")


# ---- forms of deletion that pyiceberg reads and does not write -----------------------------------------------------


def delete_rows(iceberg: Any, partition: str | None, rows: Sequence[int], vector: bool = False) -> str:
    """Commits a snapshot that deletes rows of a data file by a positional delete file, or by a deletion vector.

    Args:
        partition: the file's partition; the newest file of the table if None.

    Returns:
        The data file.
    """
    files = [task.file for task in iceberg.scan().plan_files() if partition in (None, *task.file.partition)]
    newest = files[0]
    path = f"{iceberg.location()}/data/deleted-{len(iceberg.snapshots())}"
    local = path.removeprefix("file://")
    Path(local).parent.mkdir(parents=True, exist_ok=True)
    if vector:
        Path(local).write_bytes(_puffin(newest.file_path, rows))
    else:
        pq.write_table(
            pa.table({"file_path": [newest.file_path] * len(rows), "pos": pa.array(rows, pa.int64())}), local
        )
    _commit_deletes(iceberg, path, newest, DataFileContent.POSITION_DELETES, len(rows), vector)
    return str(newest.file_path)


def _commit_deletes(
    iceberg: Any, path: str, data_file: Any, content: DataFileContent, count: int, vector: bool = False
) -> None:
    file = DataFile.from_args(
        content=content,
        file_path=path,
        file_format=FileFormat.PUFFIN if vector else FileFormat.PARQUET,
        partition=data_file.partition or Record(),
        record_count=count,
        file_size_in_bytes=1,
        equality_ids=[1] if content == DataFileContent.EQUALITY_DELETES else None,
    )
    file.spec_id = data_file.spec_id
    with iceberg.transaction() as transaction, transaction.update_snapshot().fast_append() as update:
        update.append_data_file(file)


def _puffin(path: str, rows: Sequence[int]) -> bytes:
    """A Puffin file with a deletion vector of a data file, as the specification of format 3 says."""
    import json
    import zlib

    from pyroaring import BitMap

    vector = struct.pack("<I", 1681511377) + struct.pack("<QI", 1, 0) + BitMap(rows).serialize()
    blob = struct.pack(">I", len(vector)) + vector + struct.pack(">I", zlib.crc32(vector))
    about = {
        "type": "deletion-vector-v1",
        "fields": [],
        "snapshot-id": -1,
        "sequence-number": -1,
        "offset": 4,
        "length": len(blob),
        "properties": {"referenced-data-file": path, "cardinality": str(len(rows))},
    }
    payload = json.dumps({"blobs": [about], "properties": {}}).encode()
    footer = b"PFA1" + payload + struct.pack("<i", len(payload)) + b"\0" * 4 + b"PFA1"
    return b"PFA1" + blob + footer


# ---- the rows of a snapshot ----------------------------------------------------------------------------------------


def unchecked(stream: Iceberg) -> pa.Table:
    """The rows of the stream as the source yields them, sorted by example id."""
    time = stream.time_range()
    batches = stream.read(exfm.sources.Window(0, time.start_us, time.end_us))
    return pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches]).sort_by("example_id")


def assert_as_pyiceberg(stream: Iceberg, scan: Any) -> None:
    columns = stream.schema().columns
    whole = scan.to_arrow().select(columns).to_pylist()
    expected = sorted(whole, key=lambda row: (row["event_time"], row["example_id"]))
    actual = read(stream).select(columns).to_pylist()
    for row in actual:
        row["event_time"] = row["event_time"].replace(tzinfo=UTC)
    assert actual == expected


def test_rows_are_those_of_pyiceberg_after_every_change(lake: Lake) -> None:
    """Appends, deletions, overwrites, an upsert, added, renamed and widened columns, partitions; then each again."""
    narrow = pa.table([*table([5, 1, 3]).columns[:5], pa.array(["y"] * 3)], table([]).column_names)
    narrow = narrow.set_column(2, "item", narrow["item"].cast(pa.int32()))
    lake.write(narrow)
    stream = lake.source()

    def look() -> None:
        assert_as_pyiceberg(stream, lake.table().scan())

    look()
    with lake.table().update_schema() as schema:
        schema.update_column("item", LongType())
    lake.add(price=DoubleType())
    lake.rename(unused="was")
    look()
    rows = table([2, 4, 4, 9], 3, price=[0.5, None, 2.0, 1.0])
    lake.write(rows.rename_columns([*table([]).column_names[:-1], "was", "price"]))
    look()
    delete_rows(lake.table(), None, [1, 3])
    look()
    with lake.table().update_spec() as spec:
        spec.add_identity("place")
    lake.write(lake.table().scan().to_arrow().slice(0, 2).set_column(0, "example_id", pa.array([90, 91])))
    look()
    lake.table().delete("example_id = 90")
    look()
    changed = lake.table().scan().to_arrow().slice(1, 2)
    lake.table().upsert(changed.set_column(3, "click", pa.array([1, 0], pa.int32())), join_cols=["example_id"])
    look()
    # Another column takes the name of a renamed column.
    lake.rename(click="clicked")
    lake.add(click=IntegerType())
    look()
    # A compaction: the same rows in other files.
    lake.table().overwrite(lake.table().scan().to_arrow())
    look()
    snapshots = lake.table().snapshots()
    assert len(snapshots) > 8
    for snapshot in snapshots:
        scan = lake.table().scan(snapshot_id=snapshot.snapshot_id)
        # An overwrite deletes all rows, in a separate snapshot.
        if scan.count():
            assert_as_pyiceberg(lake.source(snapshot_id=snapshot.snapshot_id), scan)


def test_columns_are_found_by_field_id(lake: Lake) -> None:
    """A renamed column keeps its values; another column of that name is null in older files, an added column too."""
    lake.write(table([1, 2]))
    lake.rename(item="thing")
    lake.add(item=LongType(), price=DoubleType())
    later = table([3], 2, price=[0.5]).rename_columns([*table([]).column_names, "price"])
    lake.write(later.append_column("thing", pa.array([77])))
    features = [{"name": name, "kind": "categorical", "rows": 9} for name in ("item", "thing", "place")]
    rows = unchecked(lake.source(features=[*features, {"name": "price", "kind": "dense"}]))
    assert rows["item"].to_pylist() == [None, None, 2]
    assert rows["thing"].to_pylist() == [0, 1, 77]
    assert rows["price"].to_pylist() == [None, None, 0.5]
    assert rows.schema.field("price").type == pa.float64()


def test_the_time_may_be_renamed_and_replaced(lake: Lake, tmp_path: Path) -> None:
    lake.write(table([1, 2]).append_column("other", table([30, 40])["event_time"]))
    stream = lake.source()
    assert stream.time_range() == exfm.sources.TimeRange(1, 3)
    before = stream.parts()
    lake.rename(event_time="first", other="event_time")
    assert stream.time_range() == exfm.sources.TimeRange(30, 41)
    assert read(stream, exfm.sources.Window(0, 30, 40))["example_id"].to_pylist() == [0]
    # The rows have other times, so that windows of the file are compared again.
    assert [unit.version for unit in stream.parts()] != [unit.version for unit in before]
    lake.rename(event_time="second")
    lake.add(event_time=TimestamptzType())
    with pytest.raises(ValueError, match=r"parquet has no times: the column 'event_time' was added to the table later"):
        stream.time_range()


def test_files_of_other_writers(lake: Lake, tmp_path: Path) -> None:
    """Files without field ids, and without the column that their folder names, as Hive writes them."""
    lake.write(table([1, 2]), partitioned=True)
    for number, city in enumerate(("Berlin", "São 1")):
        file = tmp_path / f"place={city}" / "a.parquet"
        file.parent.mkdir()
        pq.write_table(table([7 + number], 50 + number, place=pa.array([city])), file)
        lake.table().add_files([f"file://{file}"])
        # The column is in the path alone from now on.
        pq.write_table(table([7 + number], 50 + number).drop_columns(["place"]), file)
    stream = lake.source()
    assert_as_pyiceberg(stream, lake.table().scan())
    assert read(stream)["place"].to_pylist()[-2:] == ["Berlin", "São 1"]


@pytest.mark.parametrize("vector", [False, True])
def test_deleted_rows_are_not_read(lake: Lake, vector: bool) -> None:
    lake.write(table([1, 2]), group_rows=4)
    # The first row is of 1970 and the last of 3000: neither makes the range of the stream once it is deleted.
    times = [0, *range(10, 20), 32_503_680_000_000_000]
    lake.write(table(times, 2))
    stream = lake.source()
    assert stream.time_range() == exfm.sources.TimeRange(0, times[-1] + 1)

    def versions() -> dict[str, str]:
        return {unit.name: unit.version for unit in stream.parts()}

    before = versions()
    file = delete_rows(lake.table(), None, [0, 3, 11], vector)
    assert stream.time_range() == exfm.sources.TimeRange(1, 20)
    assert_as_pyiceberg(stream, lake.table().scan())
    assert read(stream)["example_id"].to_pylist() == [0, 1, 3, 4, *range(6, 13)]
    # Another version of the part, although no file is new: a window that it overlaps is compared again.
    after = versions()
    assert after.keys() == before.keys() and {name for name in after if after[name] != before[name]} == {file}
    delete_rows(lake.table(), None, [4], vector)
    assert_as_pyiceberg(stream, lake.table().scan())


def test_equality_deletes_are_refused_by_name(lake: Lake) -> None:
    [task] = lake.write(table([1, 2])).scan().plan_files()
    _commit_deletes(lake.table(), "file:///gone", task.file, DataFileContent.EQUALITY_DELETES, 1)
    with pytest.raises(ValueError, match=r"'ads.log' of catalog 'default' cannot be read: .*equality deletes.*Compact"):
        lake.source().time_range()


@settings(max_examples=6)
@given(case=SPLITS)
def test_any_split_has_the_same_rows_as_parquet(tmp_path_factory: pytest.TempPathFactory, case: dict[str, Any]) -> None:
    """Permutations and splits into commits, files, row groups and partitions: the same bits through either source."""
    folder = tmp_path_factory.mktemp("split")
    whole = table(case["times"])
    pq.write_table(whole, folder / "whole.parquet")
    small = {"batch_rows": case["batch_rows"]}
    with Lake(folder / "lake") as lake:
        for some in rows_of_writers(whole, case):
            lake.write(some, partitioned=case["partitioned"], group_rows=case["group_rows"])
        if case["compacted"]:
            lake.table().overwrite(lake.table().scan().to_arrow())
        other = Parquet(Parquet.Config.model_validate(FIELDS | small | {"path": str(folder / "whole.parquet")}))
        assert_same_windows(lake.source(**small), [other], case["length"])
    shutil.rmtree(folder)


# ---- snapshots ------------------------------------------------------------------------------------------------------


def ids(stream: Iceberg) -> list[int]:
    return list(read(stream)["example_id"].to_pylist())


def test_time_travel(lake: Lake) -> None:
    for number in range(3):
        lake.write(table([number], number))
    snapshots = sorted(lake.table().snapshots(), key=lambda snapshot: snapshot.timestamp_ms)
    for number, snapshot in enumerate(snapshots):
        at = datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC).isoformat()
        for chosen in ({"snapshot_id": snapshot.snapshot_id}, {"as_of": at}):
            assert ids(lake.source(**chosen)) == list(range(number + 1))
    with pytest.raises(ValueError, match=rf"as_of: .*no snapshot at 2020-.* it has {snapshots[-1].snapshot_id} of 2"):
        lake.source(as_of="2020-01-01T00:00:00Z").time_range()
    with pytest.raises(ValueError, match=rf"has no snapshot 7; it has {snapshots[-1].snapshot_id} of 2"):
        lake.source(snapshot_id=7).time_range()
    pinned, newest = lake.source(snapshot_id=snapshots[1].snapshot_id), lake.source()
    assert [len(stream.parts()) for stream in (pinned, newest)] == [2, 3]
    lake.write(table([9], 9))
    assert [len(stream.parts()) for stream in (pinned, newest)] == [2, 4]
    with pytest.raises(ValidationError, match="snapshot_id and as_of: both"):
        lake.source(snapshot_id=1, as_of="2026-01-31T00:00:00Z")


def test_reads_are_of_the_snapshot_of_the_last_look(lake: Lake) -> None:
    lake.write(table([1, 2, 3]))
    stream = lake.source()
    stream.time_range()
    lake.table().delete("example_id = 1")
    window = exfm.sources.Window(0, 0, 10)
    assert read(stream, window)["example_id"].to_pylist() == [0, 1, 2]
    stream.parts()
    assert read(stream, window)["example_id"].to_pylist() == [0, 2]


def test_an_unchanged_table_is_not_planned_again(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiceberg.table import DataScan

    lake.write(table([1, 2]))
    stream = lake.source()
    plan, planned = DataScan.plan_files, []

    def spy(self: Any) -> Iterable[Any]:
        planned.append(self.snapshot().snapshot_id)
        return plan(self)

    monkeypatch.setattr(DataScan, "plan_files", spy)
    first: Sequence[StreamPart] = stream.parts()
    assert [*stream.parts()] == [*first] and len(planned) == 1
    lake.write(table([3], 2))
    assert len(stream.parts()) == 2 and len(planned) == 2


def test_files_that_no_model_sees_are_read_for_their_keys(lake: Lake) -> None:
    """By the statistics of a renamed column, and by a partition whose column the files do not have."""
    lake.write(table([1, 2, 3, 4, 5, 6]), partitioned=True)
    lake.rename(place="city", item="thing")
    features = [{"name": name, "kind": "categorical", "rows": 9} for name in ("city", "thing")]
    stream = lake.source(features=features)
    cases: list[tuple[list[exfm.sources.NeededRows], list[int]]] = [
        ([{"city": ("São 1",)}], [1, 4]),
        ([{"city": ("São 1",), "thing": (5, 9)}], []),
        ([{"thing": (5, 9)}, {"city": ("São 0",)}], [0, 2, 3, 5]),
    ]
    for readers, expected in cases:
        whole: list[int] = []
        for batch in stream.select_rows(readers).read(exfm.sources.Window(0, 0, 9)):
            if not exfm.sources.Origin.from_batch(batch).keys_only:
                whole += batch["example_id"].to_pylist()
        assert sorted(whole) == expected


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"table": "ads.lgo"}, ["has no table 'ads.lgo'. Did you mean 'ads.log'"]),
        ({"table": "nowhere.log"}, ["catalog 'default' at sqlite:", "has no table 'nowhere.log'"]),
        ({"properties": {"type": "sqll"}}, ["catalog: 'default' cannot be opened", "sqll"]),
        ({"example_id": "exmple_id"}, ["no column 'exmple_id'. Did you mean 'example_id'"]),
        ({"features": [{"name": "itme", "kind": "dense"}]}, ["no column 'itme'. Did you mean 'item'"]),
        ({"event_time": "item"}, ["'item' is int64", "a timestamp", "time_unit"]),
        ({"time_unit": "ms"}, ["'event_time' is timestamp[us", "an integer"]),
        ({"event_time": "never"}, ["'never' is empty in every file of table 'ads.log'"]),
    ],
)
def test_a_table_that_does_not_fit_is_explained(lake: Lake, config: dict[str, Any], words: list[str]) -> None:
    lake.write(table([1, 2], never=pa.nulls(2, pa.timestamp("us", "UTC"))))
    with pytest.raises(ValueError) as error:
        lake.source(**config).time_range()
    assert all(word in str(error.value) for word in ["iceberg: ", *words]), str(error.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("s3.secret-access-key", "PYICEBERG_CATALOG__NAME__S3__SECRET_ACCESS_KEY"),
        ("credential", "PYICEBERG_CATALOG__NAME__CREDENTIAL"),
        ("py-catalog-impl", "names code to import"),
        ("py-io-impl", "names code to import"),
    ],
)
def test_secrets_and_code_are_refused(lake: Lake, key: str, words: str) -> None:
    with pytest.raises(ValidationError, match=words) as error:
        lake.source(properties={key: "hunter22"})
    assert all("hunter22" not in problem["msg"] for problem in error.value.errors())


def test_a_table_that_may_come_is_waited_for(lake: Lake) -> None:
    stream = lake.source()
    with pytest.raises(exfm.components.NotYetError, match="has no table 'ads"):
        stream.time_range()
    lake.catalog.create_table("ads.log", table([]).schema)
    with pytest.raises(exfm.components.NotYetError, match="nothing was written to it"):
        stream.time_range()
    lake.write(table([1]))
    lake.table().delete("example_id = 0")
    with pytest.raises(exfm.components.NotYetError, match="have no rows"):
        stream.time_range()
    lake.write(table([1]))
    assert stream.time_range() == exfm.sources.TimeRange(1, 2)


def test_a_removed_file_is_named(lake: Lake) -> None:
    stream = lake.source()
    [task] = lake.write(table([1, 2])).scan().plan_files()
    first = lake.table().current_snapshot().snapshot_id
    stream.time_range()
    lake.table().overwrite(table([3], 7))
    Path(task.file.file_path.removeprefix("file://")).unlink()
    window = exfm.sources.Window(0, 0, 9)
    with pytest.raises(exfm.components.NotYetError, match=r"parquet is gone.* expired"):
        read(stream, window)
    stream.time_range()
    assert read(stream, window)["example_id"].to_pylist() == [7]
    with pytest.raises(ValueError, match=r"parquet is gone.* expired") as error:
        lake.source(snapshot_id=first).time_range()
    assert not isinstance(error.value, exfm.components.NotYetError)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, lake: Lake) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyiceberg.catalog", None)
    with pytest.raises(ValueError, match=r"needs the package pyiceberg: pip install 'exfm\[iceberg\]'"):
        lake.source().time_range()
