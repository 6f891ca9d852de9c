"""Tests broken Parquet files, read as a run reads them: an error names file and row, or rows are left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exfm
from exfm.config.experiment import StreamConfig
from exfm.data.skips import sum_counts
from exfm.data.stream import ChunkReader
from exfm.errors import ConfigError
from exfm_plugins.sources.parquet.source import Parquet

GOOD = {"example_id": [0, 1, 2, 3], "item": [5, 6, 7, 8], "click": [0, 1, 0, 1]}
# Columns of the second of three files, the row of it that the error names, and the rows of it that are left.
DEFECTS: dict[str, tuple[dict[str, Any], int, str, list[int]]] = {
    "missing column": ({"item": None}, 0, r"item: the column is missing", []),
    "label": (
        {"click": [0, 1, 2, 1]},
        2,
        r"click: a label is 0 or 1, or null where it is not known; given: 2",
        [4, 5, 7],
    ),
    "no time": ({"event_time": [4, None, 6, 7]}, 1, r"event_time: the value is missing", [4, 6, 7]),
    "no id": ({"example_id": [4, None, 6, 7]}, 1, r"example_id: the value is missing", [4, 6, 7]),
    "repeated id": ({"example_id": [4, 2, 4, 7]}, 1, r"example_id: this example id came before; given: 2", [4, 7]),
    "other widths": (
        {"item": pa.array([5, 6, 7, 8], pa.uint8()), "click": [False, True, False, True]},
        -1,
        "",
        [4, 5, 6, 7],
    ),
}
# Wrong types are errors, whether or not bad rows are left out.
MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "wrong type": ({"item": [0.5] * 4}, r"item: the column must be integers, strings, bytes or UUIDs, not double"),
    "ids of text": (
        {"example_id": ["a", "b", "c", "d"]},
        r"example_id: the column holds string, and held integers until now",
    ),
    "another type": (
        {"item": ["5", "6", "7", "8"]},
        r"item: the column holds string, and held integers until now",
    ),
}


OnBadRow = Literal["error", "skip"]


def write(folder: Path, number: int, changes: dict[str, Any]) -> None:
    first = 4 * number
    columns: dict[str, Any] = {name: list(values) for name, values in GOOD.items()}
    columns |= {"example_id": list(range(first, first + 4)), "event_time": list(range(first, first + 4))} | changes
    columns = {name: values for name, values in columns.items() if values is not None}
    columns["event_time"] = pa.array(columns["event_time"], pa.timestamp("us"))
    pq.write_table(pa.table(columns), folder / f"part-{number}.parquet", row_group_size=3)


def reader(folder: Path, on_bad_row: OnBadRow) -> tuple[ChunkReader, exfm.sources.Window]:
    features = [{"kind": "categorical", "name": "item", "rows": 100}]
    fields = {"path": str(folder), "features": features, "labels": [{"name": "click"}]}
    source = Parquet(Parquet.Config.model_validate(fields))
    config = StreamConfig.model_construct(chunk_rows=5, on_bad_row=on_bad_row)  # type: ignore[call-arg]
    time = source.time_range()
    return ChunkReader(source, source.schema(), config, {}, exfm.sources.Shard()), exfm.sources.Window(
        0, time.start_us, time.end_us
    )


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_in_the_middle(tmp_path: Path, defect: str) -> None:
    changes, row, reason, left = DEFECTS[defect]
    for number in range(3):
        write(tmp_path, number, changes if number == 1 else {})
    skipping, window = reader(tmp_path, "skip")
    read = [id for chunk in skipping.read(window) for id in chunk.batch.example_id.tolist()]
    assert read == [0, 1, 2, 3, *left, 8, 9, 10, 11]
    assert sum_counts(skipping.skipped) == 4 - len(left)
    strict, window = reader(tmp_path, "error")
    if row < 0:
        assert sum(chunk.batch.size for chunk in strict.read(window)) == 12
    else:
        with pytest.raises(ConfigError, match=rf"/part-1\.parquet, row {row}: {reason}"):
            list(strict.read(window))


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_another_type_is_an_error_whatever_is_done_about_bad_rows(
    tmp_path: Path, misfit: str, on_bad_row: OnBadRow
) -> None:
    changes, reason = MISFITS[misfit]
    for number in range(3):
        write(tmp_path, number, changes if number == 1 else {})
    reading, window = reader(tmp_path, on_bad_row)
    with pytest.raises(ConfigError, match=rf"/part-1\.parquet, row 0: {reason}"):
        list(reading.read(window))


def test_files_that_overlap_in_time_are_merged(tmp_path: Path) -> None:
    for number, times in enumerate(([0, 2, 4, 6], [7, 3, 5, 1])):
        write(tmp_path, number, {"event_time": times})
    strict, window = reader(tmp_path, "error")
    chunks = list(strict.read(window))
    assert [time for chunk in chunks for time in chunk.batch.event_time_us.tolist()] == list(range(8))
    assert [id for chunk in chunks for id in chunk.batch.example_id.tolist()] == [0, 7, 1, 5, 2, 6, 3, 4]
