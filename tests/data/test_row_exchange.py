"""Processes that read portions of a window get the rows, and say the counts, of a process that reads all of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
from exfm.config.experiment import StreamConfig
from exfm.data import row_exchange
from exfm.data.batch import Batch
from exfm.data.stream import ChunkReader
from exfm.distributed.chunk_exchange import read_sharded
from exfm.errors import ConfigError
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm_plugins.sources.parquet.source import Parquet
from tests.thread_group import in_threads

WINDOWS = [exfm.sources.Window(number, 10 * number, 10 * number + 10) for number in range(3)]
FEATURES = [
    {"kind": "categorical", "name": "item", "rows": 100},
    {"kind": "multi_valued", "name": "tags", "rows": 100},
    {"kind": "dense", "name": "price", "missing": "mean"},
]


def write(folder: Path, log: pa.Table, random: np.random.Generator, files: int) -> None:
    """Writes the rows to files of different types, in any order."""
    file_R = random.integers(0, files, log.num_rows)
    for number in range(files):
        rows = log.filter(pa.array(file_R == number))
        if number % 2:
            rows = rows.set_column(2, "item", rows["item"].dictionary_encode())
        if number % 3 == 1:
            rows = rows.set_column(4, "price", pa.nulls(rows.num_rows, pa.float32()))
        if rows.num_rows:
            path = folder / f"{random.integers(10**6)}.parquet"
            pq.write_table(rows, path, row_group_size=int(random.integers(1, 9)))


def make_log(times: list[int], random: np.random.Generator) -> pa.Table:
    """Rows of which some have bad labels or no time, and some an id of another row, at another time or the same."""
    size = len(times)
    ids = np.arange(size)
    again = random.random(size) < 0.2
    ids[again] = random.integers(0, size, again.sum())
    same_time = np.array(times)
    copied = random.random(size) < 0.5
    same_time[copied] = same_time[ids[copied]]
    tags = [random.integers(0, 50, length).tolist() for length in random.integers(0, 4, size)]
    columns: dict[str, Any] = {
        "example_id": ids,
        "event_time": pa.array(same_time, pa.timestamp("us"), mask=random.random(size) < 0.05),
        "item": pa.array([f"i{number}" if number % 5 else None for number in range(size)], pa.string()),
        "tags": pa.array(tags, pa.list_(pa.int64())),
        "price": random.normal(size=size),
        "click": np.where(random.random(size) < 0.1, 7, np.arange(size) % 2),
    }
    return pa.table(columns)


def open_log(folder: Path, **fields: Any) -> Parquet:
    config = {"path": str(folder), "features": FEATURES, "labels": [{"name": "click"}]} | fields
    return Parquet(Parquet.Config.model_validate(config))


def rows_of(batch: Batch) -> list[tuple[Any, ...]]:
    """Lists the values of each row."""
    columns = [batch.example_id, batch.event_time_us, batch.labels["click"], batch.dense_BF.nan_to_num(nan=-9.0)]
    lists = [batch.sparse[name].to_dense() for name in ("item", "tags")]
    values = [column.tolist() for column in columns] + [[ids.tolist() for ids in column] for column in lists]
    return list(zip(*values, strict=True))


def read_all(source: Parquet, group: ProcessGroup, chunk_rows: int) -> tuple[list[Any], list[Any]]:
    """Reads all windows, and the first again; returns their chunks, and what the reader says after each."""
    stream = StreamConfig.model_construct(chunk_rows=chunk_rows, on_bad_row="skip", max_skipped_share=1.0)  # type: ignore[call-arg]
    shard = exfm.sources.Shard(group.rank, group.world_size)
    reader = ChunkReader(source, source.schema(), stream, {}, shard, group)
    chunks: list[Any] = []
    said: list[Any] = []
    for window in [*WINDOWS, WINDOWS[0]]:
        for chunk in read_sharded(reader, window, group):
            chunks.append((rows_of(chunk.batch), chunk.start, chunk.size, chunk.first_us, chunk.last_us))
        said.append((reader.skipped, dict(reader.id_kinds)))
    return chunks, said


@settings(max_examples=25)
@given(
    times=st.lists(st.integers(0, 29), min_size=1, max_size=80),
    seed=st.integers(0, 999),
    files=st.integers(1, 5),
    processes=st.integers(2, 4),
    chunk_rows=st.integers(4, 30),
    batch_rows=st.integers(1, 7),
    round_rows=st.integers(1, 20),
)
def test_any_processes_read_the_rows_of_a_single_process(
    tmp_path_factory: pytest.TempPathFactory,
    times: list[int],
    seed: int,
    files: int,
    processes: int,
    chunk_rows: int,
    batch_rows: int,
    round_rows: int,
) -> None:
    """Rows that are left out are the same too, and so are their counts."""
    folder, random = tmp_path_factory.mktemp("log"), np.random.default_rng(seed)
    write(folder, make_log(times, random), random, files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_exchange, "_ROUND_ROWS", round_rows)
        alone, said = read_all(open_log(folder, batch_rows=8192), SINGLE_PROCESS, chunk_rows)
        results = in_threads(
            lambda group: read_all(open_log(folder, batch_rows=batch_rows), group, chunk_rows), processes
        )
    for rank, result in enumerate(results):
        assert result[1] == said
        for (actual, *extent), (expected, *expected_extent) in zip(result[0], alone, strict=True):
            assert extent == expected_extent
            first = (rank - expected_extent[0]) % processes
            assert actual == expected[first::processes]


def fail(processes: int, files: list[dict[str, Any]], folder: Path, on_bad_row: str = "error") -> list[Any]:
    """Reads files of eight rows, with a row group each, in several processes, and returns their errors."""
    for number, changes in enumerate(files):
        ids = list(range(8 * number, 8 * number + 8))
        columns: dict[str, Any] = {"example_id": ids, "event_time": ids, "item": ids, "click": [0] * 8} | changes
        columns["event_time"] = pa.array(columns["event_time"], pa.timestamp("us"))
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet")

    def read(group: ProcessGroup) -> Exception | None:
        source = open_log(folder, features=FEATURES[:1])
        config = {"chunk_rows": 5, "on_bad_row": on_bad_row, "max_skipped_share": 0.01}
        stream = StreamConfig.model_construct(**config)  # type: ignore[arg-type]
        shard = exfm.sources.Shard(group.rank, group.world_size)
        reader = ChunkReader(source, source.schema(), stream, {}, shard, group)
        try:
            list(read_sharded(reader, exfm.sources.Window(0, 0, 99), group))
        except (ConfigError, exfm.RunError, OSError) as error:
            return error
        return None

    return in_threads(read, processes)


def bad_labels(rows: int) -> dict[str, Any]:
    ids = list(range(100, 100 + rows))
    return {"example_id": ids, "event_time": [3] * rows, "item": ids, "click": [7] * rows}


@pytest.mark.parametrize(
    ("files", "on_bad_row", "message"),
    [
        ([{}, {}, {"click": [0, 7] * 4}], "error", r"part-2\.parquet, row 1: click: a label is 0 or 1.*given: 7"),
        ([{}, {"example_id": [*range(8, 15), 3]}, {}], "error", r"part-1\.parquet, row 7: example_id: this example id"),
        ([{}, {"item": list("abcdefgh")}], "skip", r"part-[01]\.parquet, row 0: item: the column holds .* until now"),
        ([{}, {}, bad_labels(11)], "skip", r"11 of \d+ rows were left out, more than .*0\.01.*\(11\)"),
    ],
)
def test_all_processes_end_with_the_error_of_each(
    tmp_path: Path, files: list[dict[str, Any]], on_bad_row: str, message: str
) -> None:
    errors = fail(3, files, tmp_path, on_bad_row)
    assert len({str(error) for error in errors}) == 1
    for error in errors:
        with pytest.raises(ConfigError, match=message):
            raise error


def test_all_processes_end_where_a_process_cannot_read_its_portion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unplugged(Parquet):
        def _group(self, file: pq.ParquetFile, group: Any, window: exfm.sources.Window) -> Any:
            if group.file.path.endswith("part-1.parquet"):
                raise OSError(5, "the disk is gone")
            return super()._group(file, group, window)

    monkeypatch.setitem(globals(), "Parquet", Unplugged)
    errors = fail(2, [{}, {}], tmp_path)
    assert sorted(type(error).__name__ for error in errors) == ["OSError", "RunError"]
    assert all("the disk is gone" in str(error) for error in errors)
