"""Row groups that no reader needs are read for their keys alone, and nothing else differs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
from exfm.sources import NeededRows, Origin
from exfm_plugins.sources.parquet.source import Parquet
from tests.plugins.tables import FIELDS, table

KEYS = ["example_id", "event_time", "item", "place"]


def source(path: Path, **config: Any) -> Parquet:
    return Parquet(Parquet.Config.model_validate(FIELDS | {"path": str(path)} | config))


def read(stream: exfm.DataSource) -> tuple[pa.Table, pa.Table, int]:
    """Returns the keys of all rows, and the rows that are whole, both by example id, and the rows that are not."""
    time = stream.time_range()
    keys, whole, marked = [], [], 0
    for batch in stream.read(exfm.sources.Window(0, time.start_us, time.end_us)):
        present = [name for name in KEYS if name in batch.schema.names]
        keys.append(pa.Table.from_batches([batch.select(present).replace_schema_metadata(None)]))
        if Origin.from_batch(batch).keys_only:
            assert "click" not in batch.schema.names
            marked += batch.num_rows
        else:
            whole.append(pa.Table.from_batches([batch.replace_schema_metadata(None)]).select([*KEYS, "click"]))
    rows = pa.concat_tables(whole) if whole else pa.table({name: [] for name in [*KEYS, "click"]})
    return pa.concat_tables(keys, promote_options="default").sort_by("example_id"), rows.sort_by("example_id"), marked


def meets(row: dict[str, Any], needed: NeededRows) -> bool:
    return all(values is None or row[name] in values for name, values in needed.items())


conditions = st.fixed_dictionaries(
    {},
    optional={
        "item": st.one_of(st.none(), st.lists(st.sampled_from([0, 3, 7, 50, True, "3"]), min_size=1, max_size=2)),
        "place": st.lists(st.sampled_from(["São 0", "São 1", "", "z", 1]), min_size=1, max_size=2),
    },
)


@settings(max_examples=25)
@given(
    times=st.lists(st.integers(0, 9), min_size=1, max_size=25),
    readers=st.lists(conditions.filter(bool), min_size=1, max_size=2),
    order=st.sampled_from(["place", "item", "event_time"]),
    group_rows=st.integers(1, 9),
    partitioned=st.booleans(),
    statistics=st.booleans(),
)
def test_needed_rows_are_whole_and_all_rows_have_keys(
    tmp_path_factory: pytest.TempPathFactory,
    times: list[int],
    readers: list[dict[str, Any]],
    order: str,
    group_rows: int,
    partitioned: bool,
    statistics: bool,
) -> None:
    folder = tmp_path_factory.mktemp("log")
    rows = table(times).sort_by(order)
    rows = rows.set_column(2, "item", pa.array([None if i == 5 else i % 8 for i in rows["example_id"].to_pylist()]))
    for city in sorted(set(rows["place"].to_pylist())) if partitioned else [None]:
        file = folder / (f"place={city}" if city else ".") / "a.parquet"
        file.parent.mkdir(exist_ok=True)
        some = rows.filter(pc.equal(rows["place"], city)).drop_columns(["place"]) if city else rows
        pq.write_table(some, file, row_group_size=group_rows, write_statistics=statistics)
    expected, _, none = read(source(folder))
    selected: Sequence[NeededRows] = readers
    keys, whole, marked = read(source(folder).select_rows(selected))
    assert none == 0 and keys.select(["example_id", "event_time"]).equals(expected.select(["example_id", "event_time"]))
    for name in {name for needed in readers for name in needed}:
        assert keys[name].equals(expected[name])
    ids = set(whole["example_id"].to_pylist())
    needed_ids = [row["example_id"] for row in expected.to_pylist() if any(meets(row, needed) for needed in readers)]
    assert ids.issuperset(needed_ids) and len(ids) + marked == len(times)
    assert whole.select(KEYS).to_pylist() == [row for row in expected.to_pylist() if row["example_id"] in ids]


def test_statistics_and_folders_tell_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table(list(range(90))).drop_columns(["place"])
    for city in ("São 0", "São 1"):
        (tmp_path / f"place={city}").mkdir()
        some = rows.slice(45 * int(city[-1]), 45)
        pq.write_table(some, tmp_path / f"place={city}" / "a.parquet", row_group_size=15)
    stream = source(tmp_path)
    counts: dict[str, tuple[list[NeededRows], int]] = {
        "a folder": ([{"place": ("São 1",)}], 45),
        "folders of readers": ([{"place": ("São 1",)}, {"place": ("São 0",)}], 0),
        "statistics": ([{"item": (3, 40)}], 60),
        "both": ([{"place": ("São 0",), "item": (50,)}], 90),
        "either reader": ([{"place": ("São 0",), "item": (50,)}, {"item": (80,)}], 75),
        "another condition": ([{"item": None}], 0),
        "text for numbers, which the core casts": ([{"item": ("3",)}], 0),
    }
    for name, (readers, marked) in counts.items():
        assert read(stream.select_rows(readers))[2] == marked, name
    # A selection of columns keeps that of the rows.
    fewer = stream.schema().model_copy(update={"features": stream.schema().features[1:]})
    selected = _batches(stream.select_rows([{"place": ("São 1",)}]).select(fewer))
    assert [Origin.from_batch(batch).keys_only for batch in selected].count(True) == 3
    read_columns: list[list[str]] = []
    iter_batches = pq.ParquetFile.iter_batches

    def spy(self: Any, *args: Any, columns: list[str], **options: Any) -> Any:
        read_columns.append(columns)
        return iter_batches(self, *args, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    _batches(stream.select_rows([{"place": ("x",)}]))
    assert {name for columns in read_columns for name in columns} == {"example_id", "event_time", "place"}


def _batches(stream: exfm.DataSource) -> list[pa.RecordBatch]:
    time = stream.time_range()
    return list(stream.read(exfm.sources.Window(0, time.start_us, time.end_us)))


def test_rows_without_ids_keep_their_numbers(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"place={number}").mkdir()
        rows = table(list(range(6)), first_id=6 * number).drop_columns(["place", "example_id"])
        pq.write_table(rows, tmp_path / f"place={number}" / "a.parquet", row_group_size=2)
    stream = source(tmp_path, example_id="no such column")
    expected = {batch["no such column"][0].as_py() for batch in _batches(stream)}
    pruned = _batches(stream.select_rows([{"place": (1,)}]))
    assert {batch["no such column"][0].as_py() for batch in pruned} == expected
    assert sum("click" in batch.schema.names for batch in pruned) == 3
    assert np.sum([batch.num_rows for batch in pruned]) == 12
