"""Rows of several processes: each writes its own, and readers see the table that a single process would write."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
from exfm.config.experiment import StreamConfig
from exfm.data.stream import ChunkReader
from exfm.distributed.chunk_exchange import ShardedChunk, read_sharded
from exfm.distributed.chunk_supervision import open_supervision
from exfm.distributed.sharded_rows import ShardedRowWriter
from exfm.interfaces.data_source import TimeRange, Window, slice_rows
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.storage.commits import Commit
from exfm.storage.hashing import FileRecord
from exfm.storage.orphans import find_orphans
from exfm.storage.row_shards import row_records
from exfm.supervision import row_merging
from exfm.supervision.embeddings import CompactEmbedding, EmbeddingShape
from exfm.supervision.joiner import SupervisionRows
from exfm.supervision.row_files import RowWriter, row_file, supervision_columns, supervision_schema
from exfm.supervision.row_merging import CommittedRows, apply_merge, find_merges
from exfm.supervision.store import Store
from exfm.supervision.stored_rows import read_window
from tests.thread_group import in_threads

Ints = npt.NDArray[np.int64]
SCHEMA = supervision_schema(("click",), "fm", EmbeddingShape("float16", 3))
ALL_ROWS = exfm.sources.Shard()
WINDOW = Window(0, 1_000_000, 2_000_000)


def new_store() -> Store:
    """Opens an empty folder in memory."""
    return Store(f"memory://rows-{uuid.uuid4()}", {}, ())


def supervised(count: int, seed: int, step: int) -> SupervisionRows:
    """Rows with ids in no order, and as many equal times as steps are small; some were never learned."""
    random = np.random.default_rng(seed)
    times = WINDOW.start_us + np.cumsum(random.integers(0, step, count))
    clicks = random.random(count).astype(np.float32)
    clicks[random.random(count) < 0.2] = math.nan
    return SupervisionRows(
        torch.from_numpy(random.permutation(count) * 7 - count),
        torch.from_numpy(times),
        {"click": torch.from_numpy(clicks)},
        torch.from_numpy(times - random.integers(0, 50, count)),
        CompactEmbedding.from_values(torch.from_numpy(random.normal(size=(count, 3))), "float16"),
    )


def written(
    store: Store, rows: SupervisionRows, picked: Ints, processes: int, chunk_rows: int, window: int = 0
) -> dict[str, FileRecord]:
    """Writes the picked rows of a stream, row i by process i modulo their number; returns the files of the commit."""

    def write(process_group: ProcessGroup) -> dict[str, FileRecord]:
        writer = ShardedRowWriter(process_group, store.workspace, "supervision", "fm", window, SCHEMA)
        rank, count = process_group.rank, process_group.world_size
        for start in range(0, rows.example_id.numel(), chunk_rows):
            of_chunk = picked[(picked >= start) & (picked < start + chunk_rows)]
            index = of_chunk[of_chunk % count == rank]
            writer.append(supervision_columns(rows.take(torch.from_numpy(index)), window, 0), index)
        writer.gather_files()
        return writer.close() if process_group.is_rank_zero else {}

    return write(SINGLE_PROCESS) if processes == 1 else in_threads(write, processes)[0]


@given(
    count=st.integers(0, 60),
    seed=st.integers(0, 1_000),
    step=st.integers(1, 4),
    kept=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    processes=st.integers(2, 5),
    chunk_rows=st.integers(5, 40),
    chunk=st.integers(1, 30),
)
@settings(max_examples=15)
def test_the_rows_of_any_number_of_processes_are_a_single_processes(
    count: int, seed: int, step: int, kept: float, processes: int, chunk_rows: int, chunk: int
) -> None:
    """With ties in time, any part of the rows, and files without rows."""
    rows = supervised(count, seed, step)
    picked = np.flatnonzero(np.random.default_rng(seed + 1).random(count) < kept)
    single, several = new_store(), new_store()
    for store, count_of_files in ((single, 1), (several, processes)):
        files = written(store, rows, picked, count_of_files, chunk_rows)
        assert len(row_records(files)) == len(store.workspace.names("supervision/fm")) == count_of_files
        store.log.add("supervise", "fm", Commit(WINDOW, {}, files))
    tables = []
    for store in (single, several):
        records = store.supervision_files("fm", WINDOW)
        tables.append(read_window(store.workspace, records))
        assert read_window(store.workspace, records, ["window", "example_id"]).equals(
            tables[-1].select(["window", "example_id"])
        )
    assert tables[1].schema.equals(tables[0].schema, check_metadata=True)
    assert tables[1].equals(tables[0]) and tables[0].num_rows == picked.size
    streams = [store.supervision("fm", WINDOW) for store in (single, several)]
    for start in range(0, count, chunk):
        asked = rows.take(slice(start, start + chunk))
        first_us, last_us = int(asked.event_time_us[0]), int(asked.event_time_us[-1])
        joined = []
        for stream in streams:
            assert stream is not None
            joined.append(stream.between(first_us, last_us).join(asked.example_id, asked.event_time_us))
        assert torch.equal(joined[0].has_row, joined[1].has_row)
        left, right = (output.supervision for output in joined)
        has_row = joined[0].has_row
        assert torch.equal(left.probabilities["click"][has_row], right.probabilities["click"][has_row])
        assert left.embedding is not None and right.embedding is not None
        assert torch.equal(left.embedding[has_row], right.embedding[has_row])
    for stream in streams:
        assert stream is not None
        stream.close()


def test_a_single_process_writes_no_positions() -> None:
    rows, picked = supervised(50, 0, 3), np.arange(50)
    store = new_store()
    (record,) = written(store, rows, picked, 1, 20).values()
    plain = RowWriter(store.workspace, row_file("predictions", "fm", 0), SCHEMA)
    for start in range(0, 50, 20):
        plain.append(supervision_columns(rows.take(slice(start, start + 20)), 0, 0))
    assert plain.close().xxh3 == record.xxh3


def test_a_vacuum_merges_the_files_of_all_processes_and_readers_see_no_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Windows of one process and of three, merged in between, read back window by window."""
    store, committed, before = new_store(), list[CommittedRows](), list[pa.Table]()
    records: list[list[FileRecord]] = []
    monkeypatch.setattr(row_merging, "NEWEST", 1)
    for window in range(7):
        rows = supervised(40, window, 3)
        files = written(store, rows, np.arange(window % 2, 40, 2), 3 if window % 3 else 1, 16, window)
        records.append(row_records(files))
        committed += [CommittedRows(window, record) for record in records[-1]]
        before.append(read_window(store.workspace, records[-1]))
    state = find_merges(store.workspace, "supervision", "fm", committed, 0, 6)
    for merge in state.merges:
        apply_merge(store.workspace, merge)
    find_merges(store.workspace, "supervision", "fm", committed, 0, 6).remove(store.workspace)
    assert len(store.workspace.names("supervision/fm")) < len(committed)
    for window, table in enumerate(before):
        assert read_window(store.workspace, records[window]).equals(table) and table.num_rows


def test_files_of_other_numbers_of_processes_are_orphans_of_a_committed_window() -> None:
    """And neither those of other windows, nor labels that became known later."""
    store, rows, picked = new_store(), supervised(30, 0, 3), np.arange(30)
    committed = written(store, rows, picked, 2, 16)
    left = {record.path for count in (1, 3) for record in written(store, rows, picked, count, 16).values()}
    written(store, rows, picked, 2, 16, window=1)
    store.workspace.write("supervision/fm/window-000000-labels-{digest}.parquet", b"labels")
    assert set(find_orphans(store.workspace, committed.values())) == left and len(left) == 4


class Clicks(exfm.DataSource):
    """Promises rows in the order of time."""

    name = "clicks"

    def __init__(self, times: Ints, ids: Ints) -> None:
        super().__init__(exfm.ComponentConfig())
        self.times, self.ids = times, ids

    def schema(self) -> exfm.schema.FeatureSchema:
        feature = {"kind": "categorical", "name": "item", "rows": 8}
        return exfm.schema.FeatureSchema.model_validate({"features": [feature], "labels": [{"name": "click"}]})

    def time_range(self) -> TimeRange:
        return TimeRange(WINDOW.start_us, WINDOW.end_us)

    def read(self, window: Window, shard: exfm.sources.Shard = ALL_ROWS) -> Iterator[pa.RecordBatch]:
        numbers = np.arange(self.ids.size)
        columns = {"example_id": self.ids, "item": numbers, "click": numbers % 2}
        batch = pa.record_batch(columns | {"event_time": pa.array(self.times, pa.timestamp("us"))})
        return slice_rows(iter([exfm.sources.Origin("log", 0).mark(batch)]), shard)


def chunks_of(source: Clicks, process_group: ProcessGroup, chunk_rows: int = 4) -> Iterator[ShardedChunk]:
    """Reads the rows of a process, chunk by chunk."""
    config = StreamConfig.model_construct(chunk_rows=chunk_rows, on_bad_row="error")  # type: ignore[call-arg]
    shard = exfm.sources.Shard(process_group.rank, process_group.world_size)
    reader = ChunkReader(source, source.schema(), config, {"vm": {}}, shard)
    with closing(reader):
        yield from read_sharded(reader, WINDOW, process_group)


@pytest.mark.parametrize("late", [None, 3, 4, 9, 15])
def test_time_that_goes_backwards_between_processes_is_an_error_on_each(late: int | None) -> None:
    """Each process's own rows are in order: only between rows of two does time go backwards, in a chunk or after."""
    times = WINDOW.start_us + 10 * np.arange(16)
    if late is not None:
        times[late] -= 11

    def read(process_group: ProcessGroup) -> list[int]:
        positions: list[int] = []
        try:
            for chunk in chunks_of(Clicks(times, np.arange(16)), process_group):
                positions += chunk.cut(None, 2).position.tolist()
        except exfm.ConfigError as error:
            assert str(error) == (f"the stream, row {late} of the window: time goes backwards. Order the rows by time.")
            return []
        return positions

    expected = [list(range(rank, 16, 3)) if late is None else [] for rank in range(3)]
    assert in_threads(read, 3) == expected


@given(
    count=st.integers(1, 60),
    seed=st.integers(0, 1_000),
    step=st.integers(1, 4),
    kept=st.sampled_from([0.3, 1.0]),
    teachers=st.sampled_from([1, 2, 3, 4, 6]),
    students=st.integers(2, 3),
    left_out=st.sampled_from([0, 0, 1, 5]),
)
@settings(max_examples=15)
def test_students_find_the_rows_of_any_number_of_processes(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    seed: int,
    step: int,
    kept: float,
    teachers: int,
    students: int,
    left_out: int,
) -> None:
    """A process reads its own files where they have all of its rows; in a shorter log rows change their processes."""
    # On a disk, because threads that open a file in memory share its position.
    rows, store = supervised(count, seed, step), Store(str(tmp_path_factory.mktemp("rows")), {}, ())
    picked = np.flatnonzero(np.random.default_rng(seed + 1).random(count) < kept)
    store.log.add("supervise", "fm", Commit(WINDOW, {}, written(store, rows, picked, teachers, 16)))
    expected = dict(zip(rows.example_id[picked].tolist(), rows.probabilities["click"][picked].tolist(), strict=True))
    source = Clicks(rows.event_time_us.numpy()[left_out:], rows.example_id.numpy()[left_out:])

    def read(process_group: ProcessGroup) -> tuple[dict[int, float], bool]:
        joined: dict[int, float] = {}
        supervision = open_supervision(store, "fm", WINDOW, process_group)
        assert supervision is not None
        with closing(supervision):
            for chunk in chunks_of(source, process_group, 7):
                ids = chunk.batch.example_id
                output = supervision.of_chunk(chunk).join(ids, chunk.batch.event_time_us)
                values = output.supervision.probabilities["click"]
                values = values.masked_fill(~output.supervision.hit["click"], math.nan)
                joined |= dict(zip(ids[output.has_row].tolist(), values[output.has_row].tolist(), strict=True))
        return joined, supervision.reads_all

    joined: dict[int, float] = {}
    is_moved = left_out % students > 0 and source.ids.size > 0
    for of_process, reads_all in in_threads(read, students):
        joined |= of_process
        if kept == 1.0 or not is_moved:
            assert reads_all == (teachers % students > 0 or is_moved)
    assert joined.keys() == expected.keys() & set(source.ids.tolist())
    np.testing.assert_array_equal(list(joined.values()), [expected[number] for number in joined])
