"""`parquet`: the rows of a window from any files, row groups and time units, reading no more than it must."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

import exfm
import exfm_plugins.sources
from exfm.sources.row_groups.footers import LEAST_FILES
from exfm.testing import DataSourceTests
from exfm_plugins.sources.parquet.source import Parquet

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
GLOBO = Path(__file__).resolve().parents[2] / "examples" / "globo.yaml"
FEATURES: list[dict[str, Any]] = [{"name": "item", "kind": "categorical", "rows": 100}]
LABELS: list[dict[str, Any]] = [{"name": "click"}]
MICROSECONDS = pa.timestamp("us")
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def source(path: Any, **config: Any) -> Parquet:
    return Parquet(Parquet.Config.model_validate({"features": FEATURES, "labels": LABELS, "path": str(path)} | config))


def table(times: Any, kind: pa.DataType = MICROSECONDS, first_id: int = 0, **columns: Any) -> pa.Table:
    """Rows numbered from ``first_id``; the item is the number modulo 100."""
    ids = np.arange(first_id, first_id + len(times))
    given = {"example_id": ids, "event_time": pa.array(times, pa.int64()).cast(kind), "item": ids % 100}
    return pa.table(given | {"click": (ids % 2).astype(np.int8), "unused": ["x" * 50] * len(ids)} | columns)


class TestParquet(DataSourceTests):
    component = Parquet
    plugin = exfm_plugins.sources
    configs = tuple(
        {"path": "{folder}/" + path, "features": FEATURES, "labels": LABELS, **more}
        for path, more in (("one.parquet", {}), ("days", {"batch_rows": 7}), ("seconds", {"time_unit": "s"}))
    )

    def write(self, folder: Path) -> None:
        times = np.arange(120) // 3 * 60_000_000
        pq.write_table(table(times), folder / "one.parquet", row_group_size=13)
        for day, rows in enumerate(np.array_split(times, 3)):
            part = folder / "days" / f"{day}.parquet"
            part.parent.mkdir(exist_ok=True)
            pq.write_table(table(rows, first_id=40 * day), part)
        (folder / "seconds").mkdir()
        pq.write_table(table(times // 10**6, pa.int64()), folder / "seconds" / "a.parquet")

    def grow(self, folder: Path) -> None:
        later = np.arange(120, 150) // 3 * 60_000_000
        pq.write_table(table(np.concatenate([np.arange(120) // 3 * 60_000_000, later])), folder / "one.parquet")
        pq.write_table(table(later, first_id=120), folder / "days" / "3.parquet")
        pq.write_table(table(later // 10**6, pa.int64(), first_id=120), folder / "seconds" / "b.parquet")


def rows_of(batches: Iterator[pa.RecordBatch]) -> list[tuple[int, int]]:
    """(example id, time) of every row."""
    rows: list[tuple[int, int]] = []
    for batch in batches:
        assert batch.schema.field("event_time").type == pa.timestamp("us")
        assert batch.num_rows > 0
        rows += zip(batch["example_id"].to_pylist(), batch["event_time"].cast(pa.int64()).to_pylist(), strict=True)
    return rows


def everything(of: Parquet) -> list[tuple[int, int]]:
    time = of.time_range()
    return rows_of(of.read(exfm.sources.Window(0, time.start_us, time.end_us)))


cases = st.fixed_dictionaries(
    {
        # Small numbers of a large unit: ties within and across row groups and files are common.
        "times": st.lists(st.integers(-5, 40), min_size=1, max_size=60).map(sorted),
        "cuts": st.lists(st.integers(0, 60), max_size=3).map(sorted),
        "group_rows": st.integers(1, 9),
        "unit": st.sampled_from(["s", "ms", "us", "ns"]),
        "integer": st.booleans(),
        "statistics": st.booleans(),
        "batch_rows": st.integers(1, 7),
    }
)


def write(folder: Path, case: dict[str, Any]) -> Parquet:
    """Writes a case's rows as files cut at ``cuts``, and opens them."""
    for old in folder.glob("*.parquet"):
        old.unlink()
    kind = pa.int64() if case["integer"] else pa.timestamp(case["unit"], "UTC")
    bounds = [0, *case["cuts"], len(case["times"])]
    for number, (start, end) in enumerate(pairwise(bounds)):
        part = table(case["times"][start:end], kind, first_id=start)
        path = folder / f"{number}.parquet"
        pq.write_table(part, path, row_group_size=case["group_rows"], write_statistics=case["statistics"])
    unit = {"time_unit": case["unit"]} if case["integer"] else {}
    return source(folder, batch_rows=case["batch_rows"], **unit)


@given(case=cases, length_us=st.integers(1, 10**7), shards=st.integers(1, 3))
def test_rows_against_a_reference(tmp_path: Path, case: dict[str, Any], length_us: int, shards: int) -> None:
    case["cuts"] = [cut for cut in case["cuts"] if cut <= len(case["times"])]
    of = write(tmp_path, case)
    reference = [(i, time * 10**6 // PER_SECOND[case["unit"]]) for i, time in enumerate(case["times"])]
    time = of.time_range()
    assert time == exfm.sources.TimeRange(reference[0][1], reference[-1][1] + 1)
    for begin in range(time.start_us - 1, time.end_us + 1, max(1, (time.end_us - time.start_us) // 7)):
        assert of.next_event_us(begin) == min((at for _, at in reference if at >= begin), default=None)
    length_us = max(length_us, (time.end_us - time.start_us) // 8)
    for begin in range(time.start_us - 3, time.end_us + 3, length_us):
        window = exfm.sources.Window(0, begin, begin + length_us)
        expected = [row for row in reference if begin <= row[1] < begin + length_us]
        assert rows_of(of.read(window)) == expected
        portions = [rows_of(of.read(window, exfm.sources.Shard(shard, shards))) for shard in range(shards)]
        assert sorted(chain(*portions)) == sorted(expected)
        assert all(portion == [row for row in expected if row in set(portion)] for portion in portions)


@given(case=cases)
def test_origins_name_file_and_row(tmp_path: Path, case: dict[str, Any]) -> None:
    case["cuts"] = [cut for cut in case["cuts"] if cut <= len(case["times"])]
    of = write(tmp_path, case)
    time = of.time_range()
    for batch in of.read(exfm.sources.Window(0, time.start_us + 1, time.end_us)):
        origin = exfm.sources.Origin.from_batch(batch)
        stored = pq.read_table(origin.file)["example_id"].slice(origin.row, batch.num_rows)
        assert stored.to_pylist() == batch["example_id"].to_pylist()


@given(
    times=st.lists(st.one_of(st.none(), st.integers(0, 20)), min_size=1, max_size=30),
    group_rows=st.integers(1, 30),
    batch_rows=st.integers(1, 5),
    length=st.integers(1, 9),
)
def test_disorder_is_shown_and_loses_nothing(
    tmp_path: Path, times: list[int | None], group_rows: int, batch_rows: int, length: int
) -> None:
    """Rows are read once, in the window of their time; rows without a time in that of the row before them."""
    assume(any(time is not None for time in times))
    pq.write_table(table(times), tmp_path / "a.parquet", row_group_size=group_rows)
    of = source(tmp_path, batch_rows=batch_rows)
    time = of.time_range()
    read = []
    present = [(number, time) for number, time in enumerate(times) if time is not None]
    for begin in range(time.start_us, time.end_us, length):
        here = rows_of(of.read(exfm.sources.Window(0, begin, begin + length)))
        inside = [row for row in present if begin <= row[1] < begin + length]
        assert sorted(row for row in here if row[1] is not None) == inside
        following = of.next_event_us(begin)
        assert following is not None and begin <= following
        assert following < begin + length or not here, "what is passed over has none"
        read += here
    assert sorted(read) == list(enumerate(times))
    assert of.next_event_us(time.end_us) is None


def test_a_window_reads_its_row_groups_and_columns_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for day in range(4):
        part = table(np.arange(1000) + day * 1000, first_id=day * 1000)
        pq.write_table(part, tmp_path / f"{day}.parquet", row_group_size=100)
    of = source(tmp_path, batch_rows=64)
    of.time_range()
    opened: list[str] = []
    read: list[tuple[list[int], list[str]]] = []
    init, iter_batches = pq.ParquetFile.__init__, pq.ParquetFile.iter_batches

    def spy_init(self: Any, path: str, **options: Any) -> None:
        opened.append(Path(path).name)
        init(self, path, **options)

    def spy(self: Any, batch_size: int = 64, *, row_groups: list[int], columns: list[str]) -> Iterator[pa.RecordBatch]:
        if len(columns) > 1:  # the times alone are read before, once
            read.append((row_groups, columns))
        for batch in iter_batches(self, batch_size, row_groups=row_groups, columns=columns):
            assert batch.num_rows <= 64
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "__init__", spy_init)
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    assert len(rows_of(of.read(exfm.sources.Window(0, 1850, 2120)))) == 270
    assert sorted(opened) == ["1.parquet", "2.parquet"]
    assert [groups for groups, _ in read] == [[8], [9], [0], [1]]
    assert {name for _, columns in read for name in columns} == {"example_id", "item", "click"}
    opened.clear()
    of.time_range()
    assert opened == [], "a footer is read once"


def test_a_growing_folder(tmp_path: Path) -> None:
    pq.write_table(table([1, 2]), tmp_path / "0.parquet")
    of = source(tmp_path)
    assert of.time_range() == exfm.sources.TimeRange(1, 3)
    pq.write_table(table([2, 9], first_id=2), tmp_path / "1.parquet")
    assert of.time_range() == exfm.sources.TimeRange(1, 10)
    assert everything(of) == [(0, 1), (1, 2), (2, 2), (3, 9)]


def test_files_follow_each_other_in_time(tmp_path: Path) -> None:
    """Names without zeros, and a file that arrives late: hour=10 stands after hour=9, and each where its time is."""
    hours = [0, 1, 2, 9, 11, 23]
    for hour in hours:
        path = tmp_path / f"hour={hour}" / "part-0.parquet"
        path.parent.mkdir()
        pq.write_table(table([hour * 100, hour * 100 + 50], first_id=hour * 100), path)
    of = source(tmp_path)
    expected = [(hour * 100 + k, hour * 100 + 50 * k) for hour in hours for k in (0, 1)]
    assert everything(of) == expected
    late = tmp_path / "a-late.parquet"
    pq.write_table(table([1000], first_id=7), late)
    assert everything(of) == sorted([*expected, (7, 1000)], key=lambda row: row[1])
    assert [part.first_us for part in of.parts()] == [0, 100, 200, 900, 1000, 1100, 2300]


def test_a_file_is_a_part_of_the_stream(tmp_path: Path) -> None:
    pq.write_table(table([5, 9]), tmp_path / "a.parquet", row_group_size=1)
    pq.write_table(table([]), tmp_path / "empty.parquet")
    of = source(tmp_path)
    [only] = of.parts()
    assert (only.name, only.first_us, only.last_us) == (str(tmp_path / "a.parquet"), 5, 9)
    [batch, _] = of.read(exfm.sources.Window(0, 0, 100))
    assert exfm.sources.Origin.from_batch(batch).file == only.name
    assert source(tmp_path).parts() == [only], "another process sees the same version"
    pq.write_table(table([9, 12], first_id=2), tmp_path / "b.parquet")
    assert [part.name for part in of.parts()] == [only.name, str(tmp_path / "b.parquet")]
    pq.write_table(table([5, 10]), tmp_path / "a.parquet", row_group_size=1)
    [changed, _] = of.parts()
    assert (changed.name, changed.last_us) == (only.name, 10)
    assert changed.version != only.version


def test_a_stray_time_costs_no_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row of 1970 beside rows of 2024, in one row group: the next event is known, and its column is read once."""
    year_2024, day = 1_709_251_200_000_000, 86_400_000_000
    times = [0, *(year_2024 + day // 2 * number for number in range(6))]
    pq.write_table(table(times), tmp_path / "a.parquet")
    of = source(tmp_path)
    opened: list[str] = []
    of_files = of._files

    def noted(path: str) -> Any:
        opened.append(path)
        return type(of_files).open(of_files, path)

    monkeypatch.setattr(of_files, "open", noted)
    assert of.next_event_us(0) == 0
    assert of.next_event_us(1) == year_2024
    opened.clear()
    for begin, following in pairwise(times[1:]):
        assert of.next_event_us(begin + 1) == following
    assert opened == []
    assert of.next_event_us(times[-1] + 1) is None


def test_rows_without_a_time_stand_where_the_stream_has_got_to(tmp_path: Path) -> None:
    """Also where a whole row group, or a whole file, has none, at the beginning of the stream too."""
    files: list[list[int | None]] = [[None, None, None, None], [None, None, 20, 21], [30, None, None, None, 35]]
    first_id = 0
    for number, times in enumerate(files):
        pq.write_table(table(times, first_id=first_id), tmp_path / f"{number}.parquet", row_group_size=2)
        first_id += len(times)
    of = source(tmp_path)
    assert of.time_range() == exfm.sources.TimeRange(20, 36)
    first, second = (rows_of(of.read(exfm.sources.Window(0, start, start + 10))) for start in (20, 30))
    assert [row for row, _ in first] == list(range(8))
    assert [row for row, _ in second] == list(range(8, 13))
    assert [time for _, time in first] == [*files[0], *files[1]]


def test_same_rows_wherever_the_files_are(tmp_path: Path) -> None:
    parts = [table([1, 2]), table([3, 4], first_id=2)]
    memory = fsspec.filesystem("memory")
    for number, part in enumerate(parts):
        folder = tmp_path / "stream" / f"day={number}"
        folder.mkdir(parents=True)
        pq.write_table(part, folder / "part.parquet")
        buffer = io.BytesIO()
        pq.write_table(part, buffer)
        memory.pipe(f"/stream/{number}.parquet", buffer.getvalue())
    (tmp_path / "stream" / "_SUCCESS").touch()
    (tmp_path / "stream" / "_temporary").mkdir()
    (tmp_path / "stream" / "_temporary" / "x.parquet").write_bytes(b"half written")
    try:
        for url in (tmp_path / "stream", f"file://{tmp_path}/stream", tmp_path / "stream" / "day=*" / "*.parquet",
                    "memory://stream", "memory://stream/*.parquet"):  # fmt: skip
            assert everything(source(url)) == [(0, 1), (1, 2), (2, 3), (3, 4)], url
        assert everything(source("memory://stream/1.parquet")) == [(2, 3), (3, 4)]
    finally:
        memory.rm("/stream", recursive=True)


def test_columns_of_the_path(tmp_path: Path) -> None:
    """Integers where all are, padded or not; strings decoded, one missing; a file's own column is its own."""
    folders = [
        "hour=03/place=S%C3%A3o%2FPaulo/odd=1",
        "hour=4/place=__HIVE_DEFAULT_PARTITION__/odd=x",
        "hour=-5/place=7/odd=2",
    ]
    for number, folder in enumerate(folders):
        (tmp_path / folder).mkdir(parents=True)
        pq.write_table(table([number], first_id=number), tmp_path / folder / "a.parquet")
    (tmp_path / "hour=6" / "place=b" / "odd=3").mkdir(parents=True)
    pq.write_table(table([9], first_id=9, hour=[60]), tmp_path / "hour=6" / "place=b" / "odd=3" / "a.parquet")
    names = ("hour", "place", "odd")
    features = [{"name": name, "kind": "categorical", "rows": 10} for name in names]
    of = source(tmp_path, features=features, domain="place")
    batches = list(of.read(exfm.sources.Window(0, 0, 10)))
    rows = [tuple(batch[name][0].as_py() for name in names) for batch in batches]
    assert rows == [(3, "São/Paulo", "1"), (4, None, "x"), (-5, "7", "2"), (60, "b", "3")]
    assert {str(batch.schema.field("place").type) for batch in batches} == {"string"}
    assert set(batches[0].schema.names) == {"example_id", "event_time", "click", *names}
    with pytest.raises(ValueError, match=r"a column 'our'\. Did you mean 'hour'"):
        source(tmp_path, features=[{"name": "our", "kind": "categorical", "rows": 10}]).time_range()


def test_links_are_followed(tmp_path: Path) -> None:
    """A partition on another disk, a file elsewhere, a folder of links only; a link to the folder itself ends."""
    other = tmp_path / "other" / "day=1"
    other.mkdir(parents=True)
    pq.write_table(table([3, 4], first_id=2), other / "a.parquet")
    data, links = tmp_path / "data", tmp_path / "links"
    (data / "day=0").mkdir(parents=True)
    pq.write_table(table([1, 2]), data / "day=0" / "a.parquet")
    (data / "day=1").symlink_to(other)
    (data / "again").symlink_to(data)
    links.mkdir()
    (links / "0.parquet").symlink_to(data / "day=0" / "a.parquet")
    (links / "1.parquet").symlink_to(other / "a.parquet")
    for url in (data, links, links / "*.parquet"):
        assert everything(source(url)) == [(0, 1), (1, 2), (2, 3), (3, 4)], url
    assert everything(source(links / "1.parquet")) == [(2, 3), (3, 4)]


def test_lists_and_strings_come_through(tmp_path: Path) -> None:
    columns = {
        "user": pa.array(["a", None]).dictionary_encode(),
        "tags": pa.array([["x"], []], pa.large_list(pa.string())),
        "seen": pa.array([[3, 4], None]),
        "seen_age": pa.array([[0.5, 1.5], []]),
    }
    pq.write_table(table([1, 2], **columns), tmp_path / "a.parquet")
    features = [
        {"name": "user", "kind": "categorical", "rows": 10},
        {"name": "tags", "kind": "multi_valued", "rows": 10},
        {"name": "size", "kind": "dense", "column": "item"},
        {"name": "history", "kind": "sequence", "max_length": 5,
         "fields": [{"name": "item", "column": "seen", "rows": 10, "ids": "row"},
                    {"name": "age", "column": "seen_age", "kind": "dense"}]},
    ]  # fmt: skip
    of = source(tmp_path, features=features, group="user")
    assert of.schema().group == "user"
    assert of.schema().features[3].fields[1].source_column == "seen_age"  # type: ignore[union-attr]
    [batch] = of.read(exfm.sources.Window(0, 0, 9))
    assert set(batch.schema.names) == {"example_id", "event_time", "click", "item", *columns}
    assert batch["tags"].to_pylist() == [["x"], []]
    assert batch["seen"].to_pylist() == [[3, 4], None]
    assert batch["user"].to_pylist() == ["a", None]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"features": [{"name": "itme", "kind": "dense"}]}, ["no file", "a column 'itme'", "Did you mean 'item'"]),
        ({"labels": [{"name": "click", "oracle": "truth"}]}, ["a column 'truth'", "Allowed: click, event_time"]),
        ({"event_time": "when"}, ["a.parquet has no column 'when'"]),
        ({"event_time": "item"}, ["'item' is int64", "a timestamp", "time_unit"]),
        ({"time_unit": "ms"}, ["'event_time' is timestamp[us]", "an integer"]),
        ({"group": "usr"}, ["a column 'usr'"]),
        ({"event_time": "huge", "time_unit": "s"}, ["'huge'", "9999", "smaller unit"]),
        ({"event_time": "never"}, ["'never' is empty in every file"]),
    ],
)
def test_columns_that_do_not_fit_are_explained(tmp_path: Path, config: dict[str, Any], words: list[str]) -> None:
    never = pa.nulls(2, pa.timestamp("us"))
    pq.write_table(table([1, 2], huge=[1_500_000_000_000] * 2, never=never), tmp_path / "a.parquet")
    with pytest.raises(ValueError) as error:
        source(tmp_path, **config).time_range()
    assert all(word in str(error.value) for word in ["parquet: ", *words])


def test_a_file_may_lack_columns_for_the_core_to_find(tmp_path: Path) -> None:
    pq.write_table(table([1, 2]).drop_columns(["item"]), tmp_path / "a.parquet")
    pq.write_table(table([3], first_id=2), tmp_path / "b.parquet")
    odd = pa.array([["x"]])
    pq.write_table(table([4], first_id=3, item=odd, click=odd), tmp_path / "c.parquet")
    of = source(tmp_path)
    assert everything(of) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    schemas = [set(batch.schema.names) for batch in of.read(exfm.sources.Window(0, 0, 9))]
    assert schemas == [{"example_id", "event_time", "click"}, *[{"example_id", "event_time", "click", "item"}] * 2]


def test_wrong_paths_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder '.*nowhere'"):
        source(tmp_path / "nowhere").time_range()
    with pytest.raises(ValueError, match="holds no Parquet file"):
        source(tmp_path).time_range()
    (tmp_path / "a.parquet").write_text("not Parquet at all")
    with pytest.raises(ValueError, match=r"a\.parquet cannot be read as Parquet"):
        source(tmp_path).time_range()
    pq.write_table(table([]), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="have no rows"):
        source(tmp_path).time_range()


def test_the_schema_is_checked_with_the_config() -> None:
    twice = FEATURES * 2
    for wrong, words in (
        ({"features": twice}, "names item twice"),
        ({"time_unit": "h"}, "'ns'"),
        ({"typo": 1}, "typo"),
    ):
        with pytest.raises(ValidationError, match=words):
            source("anywhere", **wrong)
    source("anywhere").schema()


def test_real_data() -> None:
    if not (DATA / "globo-clicks").is_dir():
        pytest.skip(f"needs globo-clicks in {DATA}")
    import yaml

    config = yaml.safe_load(GLOBO.read_text())["stream"]["source"]
    assert config.pop("name") == "parquet"
    of = source(DATA / "globo-clicks", **{key: value for key, value in config.items() if key != "path"})
    time, hours6 = of.time_range(), 6 * 3600 * 10**6
    rows = clicks = 0
    for begin in range(time.start_us, time.end_us, hours6):
        for batch in of.read(exfm.sources.Window(0, begin, begin + hours6)):
            assert batch["example_id"][0].as_py() == rows, "the ids count the rows of the stream"
            rows += batch.num_rows
            clicks += int(batch["click"].to_numpy().sum())
    assert (rows, clicks) == (1_805_570, 361_114)


def test_the_footers_of_many_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "log"
    folder.mkdir()
    for number in range(LEAST_FILES):
        pq.write_table(table([number, None], first_id=2 * number), folder / f"{number}.parquet")
    opened: list[str] = []
    init = pq.ParquetFile.__init__

    def spy(self: Any, path: str, **options: Any) -> None:
        opened.append(Path(path).name)
        init(self, path, **options)

    monkeypatch.setattr(pq.ParquetFile, "__init__", spy)
    first = source(folder)
    expected = first.parts(), rows_of(first.read(exfm.sources.Window(0, 0, 1000)))
    opened.clear()
    again = source(folder)
    assert again.parts() == expected[0] and opened == []
    assert rows_of(again.read(exfm.sources.Window(0, 0, 1000))) == expected[1]
    opened.clear()
    pq.write_table(table([500, 501], first_id=999), folder / "7.parquet")
    assert source(folder).time_range().end_us == 502
    assert opened == ["7.parquet"]
    (cache,) = (tmp_path / "cache" / "exfm" / "parquet").iterdir()
    cache.write_text("{")
    opened.clear()
    assert source(folder).parts() and len(opened) == LEAST_FILES


def test_a_column_that_a_file_has_twice_is_named(tmp_path: Path) -> None:
    rows = table([1, 2])
    doubled = pa.Table.from_arrays([*rows.columns, rows.column("item")], [*rows.column_names, "item"])
    pq.write_table(doubled, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet has more than one column 'item'"):
        source(tmp_path).time_range()


def test_a_column_that_nobody_reads_may_be_there_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A footer in the cache is checked for the columns of each job."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "log"
    folder.mkdir()
    for number in range(LEAST_FILES):
        rows = table([number], first_id=number)
        if number == 7:
            rows = pa.Table.from_arrays([*rows.columns, rows["unused"]], [*rows.column_names, "unused"])
        pq.write_table(rows, folder / f"{number}.parquet")
    assert len(everything(source(folder))) == LEAST_FILES
    assert len(list((tmp_path / "cache" / "exfm" / "parquet").iterdir())) == 1
    with pytest.raises(ValueError, match=r"7\.parquet has more than one column 'unused'"):
        source(folder, features=[*FEATURES, {"name": "unused", "kind": "categorical", "rows": 9}]).time_range()
