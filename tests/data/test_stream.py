"""The stream: windows partition time, chunks are cut evenly, and the reader's thread comes and goes cleanly."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.config.experiment import Bucket, StreamConfig
from exfm.data.stream import Chunk, ChunkReader
from exfm.data.windows import WindowGrid, stream_windows, windows_with_events
from exfm.errors import ConfigError

WINDOW = exfm.sources.Window(0, 0, 10**9)
ALL_ROWS = exfm.sources.Shard()
READER = "exfm-reader"
Batches = Callable[[], Iterator[pa.RecordBatch]]


class Source(exfm.DataSource):
    """Yields the batches of a function."""

    name = "given"

    def __init__(self, batches: Batches) -> None:
        super().__init__(exfm.ComponentConfig())
        self.batches = batches

    def schema(self) -> exfm.schema.FeatureSchema:
        feature = {"kind": "categorical", "name": "item", "rows": 10**6, "ids": "row"}
        return exfm.schema.FeatureSchema.model_validate({"features": [feature], "labels": [{"name": "click"}]})

    def time_range(self) -> exfm.sources.TimeRange:
        return exfm.sources.TimeRange(WINDOW.start_us, WINDOW.end_us)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = ALL_ROWS) -> Iterator[pa.RecordBatch]:
        return self.batches()


def rows(first: int, count: int, **columns: Any) -> pa.RecordBatch:
    numbers = range(first, first + count)
    times = pa.array(numbers, pa.timestamp("us"))
    usual = {"example_id": pa.array(numbers, pa.int64()), "event_time": times, "item": pa.array(numbers, pa.int64())}
    batch = pa.record_batch(usual | {"click": pa.array([i % 2 for i in numbers], pa.int8())} | columns)
    return exfm.sources.Origin("log", first).mark(batch)


def reader(
    batches: Batches, chunk_rows: int = 4, on_bad_row: Literal["error", "skip"] = "error", **where: Any
) -> ChunkReader:
    source = Source(batches)
    config = StreamConfig.model_construct(chunk_rows=chunk_rows, on_bad_row=on_bad_row)  # type: ignore[call-arg]
    return ChunkReader(source, source.schema(), config, where or {"vm": {}}, exfm.sources.Shard())


def ids(chunks: Iterator[Chunk]) -> list[list[int]]:
    return [chunk.batch.example_id.tolist() for chunk in chunks]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert READER not in [thread.name for thread in threading.enumerate()]


class Times(Source):
    """A stream with events at some times, which it finds; or that says nothing about them."""

    def __init__(self, times: list[int], finds: bool) -> None:
        super().__init__(lambda: iter(()))
        self.times, self.finds = sorted(times), finds

    def time_range(self) -> exfm.sources.TimeRange:
        return exfm.sources.TimeRange(self.times[0], self.times[-1] + 1)

    def next_event_us(self, from_us: int) -> int | None:
        return next((time for time in self.times if time >= from_us), None) if self.finds else from_us


@given(
    start=st.integers(-(10**16), 10**16),
    offsets=st.lists(st.integers(0, 10**9), min_size=1, max_size=5),
    length_us=st.integers(10**7, 10**12),
    delays=st.lists(st.integers(1, 10**9), max_size=2),
    finds=st.booleans(),
)
def test_windows_are_cells_of_a_grid_and_those_with_events_are_passed_in_order(
    start: int, offsets: list[int], length_us: int, delays: list[int], finds: bool
) -> None:
    source = Times([start + offset for offset in offsets], finds)
    span = source.time_range()
    grid = WindowGrid.around(span.start_us, timedelta(microseconds=length_us))
    windows = list(windows_with_events(source, grid, span, delays))
    assert grid.origin_us % length_us == 0
    for window in windows:
        assert window.start_us == grid.origin_us + window.index * length_us == window.end_us - length_us
        assert window == grid.window(grid.index_at(window.start_us)) == grid.window(grid.index_at(window.end_us - 1))
    calls = [time + delay for time in source.times for delay in (0, *delays)]
    needed = sorted({grid.index_at(time) for time in calls if time < span.end_us})
    indices = [window.index for window in windows]
    assert indices == (needed if finds else list(range(grid.index_at(span.end_us - 1) + 1)))


def test_a_stream_that_grows_or_is_cut_changes_no_windows_number() -> None:
    grid = WindowGrid.around(1_000, timedelta(microseconds=100))
    for times in ([1_000, 1_250, 1_930], [1_250, 1_930], [1_250, 1_930, 2_050], [900, 1_250, 1_930]):
        source = Times(times, True)
        windows = {window.start_us: window.index for window in windows_with_events(source, grid, source.time_range())}
        assert windows[1_200] == 2
        assert windows[1_900] == 9


def test_long_windows_are_exact() -> None:
    """In floating point the step of a window of years would be off by a microsecond."""
    length = timedelta(days=100_000, microseconds=1)
    [*_, last] = stream_windows(Times([0, 10**18 - 1], True), length)
    assert last.start_us % (100_000 * 86_400_000_000 + 1) == 0


@given(sizes=st.lists(st.integers(0, 9), max_size=8), chunk_rows=st.integers(1, 7))
def test_chunks_do_not_depend_on_the_sources_batches(sizes: list[int], chunk_rows: int) -> None:
    total = sum(sizes)
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    read = reader(lambda: map(rows, firsts, sizes), chunk_rows).read(WINDOW)
    chunks = list(read)
    assert ids(iter(chunks)) == [list(range(i, min(i + chunk_rows, total))) for i in range(0, total, chunk_rows)]
    for chunk in chunks:
        assert chunk.batch.sparse["item"].values().tolist() == chunk.batch.example_id.tolist()
        assert chunk.batch.labels["click"].tolist() == (chunk.batch.example_id % 2).tolist()


def test_each_model_gets_its_rows() -> None:
    half = {"example_id": Bucket(bucket=0, of=2)}
    other_half = {"example_id": Bucket(bucket=1, of=2)}
    read = reader(lambda: iter([rows(0, 10)]), 4, fm={}, a=half, b=other_half, c={"item": (1, 5, 9)}).read(WINDOW)
    for chunk in read:
        assert chunk.rows["fm"] is None
        first, second = chunk.rows["a"], chunk.rows["b"]
        assert first is not None and second is not None
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(chunk.batch.size))
        third = chunk.rows["c"]
        assert third is not None
        assert chunk.batch.example_id[third].tolist() == [i for i in chunk.batch.example_id.tolist() if i in (1, 5, 9)]


def test_a_model_without_rows_is_told_at_the_end_of_the_first_window(caplog: pytest.LogCaptureFixture) -> None:
    log = reader(lambda: iter([rows(0, 6)]), 4, fm={}, vm={"item": 99}, half={"item": (5, 6)})
    for _ in range(2):
        list(log.read(WINDOW))
    [said] = caplog.messages
    assert said.startswith("models.vm.where: none of the first 6 rows meets {item: 99}; item holds 0 (1)")


def test_a_change_of_width_changes_nothing() -> None:
    """Files that were written by different jobs: equal values in other types, in another order of columns."""
    narrow = rows(8, 3).set_column(2, "item", pa.array([8, 9, 10], pa.int32()))
    required = rows(14, 2)
    fields = [pa.field(field.name, field.type, nullable=False) for field in required.schema]
    required = pa.RecordBatch.from_arrays(required.columns, schema=pa.schema(fields, required.schema.metadata))
    others = [rows(3, 2, unused=pa.array(["x"] * 2)), narrow, rows(11, 3).select([3, 1, 0, 2]), required]
    for shards in (1, 2):
        read = []
        for shard in range(shards):
            batches = [rows(0, 3), *others] if shard == 0 else [*others, rows(16, 3)]
            log = reader(lambda batches=batches: iter(batches), 4)  # type: ignore[misc]
            log.shard = exfm.sources.Shard(shard, shards)
            read.append(list(log.read(WINDOW)))
        expected = [0, 1, 2, 3, 4, 8, 9, 10, 11, 12, 13, 14, 15]
        size = 4 // shards
        assert ids(iter(read[0])) == [expected[i : i + size] for i in range(0, len(expected), size)]
        assert [chunk.batch.sparse["item"].values().tolist() for chunk in read[0]] == ids(iter(read[0]))


def test_bad_batches_and_rows_are_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    lacking = rows(4, 3).drop_columns(["item"])
    bad_label = rows(8, 2).set_column(3, "click", pa.array([0, 7], pa.int8()))
    batches = [rows(0, 0).drop_columns(["item"]), rows(0, 4), lacking, bad_label, rows(10, 2)]
    skipping = reader(lambda: iter(batches), 4, on_bad_row="skip")
    assert ids(skipping.read(WINDOW)) == [[0, 1, 2, 3], [8, 10, 11]]
    missing = next(iter(skipping.skipped["item"]))
    assert missing.startswith("the column is missing")
    assert skipping.skipped == {"item": {missing: 3}, "click": {"a label is 0 or 1, or null where it is not known": 1}}
    skipping.warn_left_out()
    skipping.warn_left_out()
    [said] = caplog.messages
    assert (
        said.startswith("4 of 11 rows were left out")
        and "click: a label is 0 or 1, or null where it is not known (1)" in said
    )
    assert ids(reader(lambda: iter([lacking]), on_bad_row="skip").read(WINDOW)) == []
    with pytest.raises(ConfigError, match=r"log, row 4: item: the column is missing"):
        list(reader(lambda: iter(batches)).read(WINDOW))


def test_skipping_has_a_limit() -> None:
    """It is of a thousand rows at least, so that a few bad rows do not end a run, and of all windows together."""

    def some(bad: int, total: int, first: int = 0) -> pa.RecordBatch:
        labels = pa.array([7] * bad + [0] * (total - bad), pa.int8())
        return rows(first, total).set_column(3, "click", labels)

    assert len(ids(reader(lambda: iter([some(400, 400)]), on_bad_row="skip").read(WINDOW))) == 0
    with pytest.raises(
        ConfigError,
        match=r"401 of 401 rows were left out, more than .*0\.4.*a label is 0 or 1, or null .*\(401\)",
    ):
        list(reader(lambda: iter([some(401, 401)]), on_bad_row="skip").read(WINDOW))
    batches = [some(350, 1000)]
    skipping = reader(lambda: iter(batches), 100, on_bad_row="skip")
    for number in range(3):
        batches[:] = [some(350 + 100 * number, 1000, 1000 * number)]
        begin = 1000 * number
        reading = skipping.read(exfm.sources.Window(number, begin, begin + 1000))
        if number < 2:
            assert sum(map(len, ids(reading))) == 650 - 100 * number
        else:
            with pytest.raises(ConfigError, match=r"1350 of 3000 rows"):
                list(reading)
    assert sum(map(len, ids(skipping.read(exfm.sources.Window(0, 0, 10**9))))) == 450, (
        "read again, it is not counted again"
    )


def test_an_example_id_comes_once() -> None:
    """Within a batch, a window, and from window to window; not where a window is read again."""
    first, second = exfm.sources.Window(0, 0, 20), exfm.sources.Window(1, 20, 40)
    batches: list[pa.RecordBatch] = []

    def again(batch: pa.RecordBatch, *example_ids: int) -> pa.RecordBatch:
        return batch.set_column(0, "example_id", pa.array(example_ids, pa.int64()))

    strict = reader(lambda: iter(batches))
    for repeated in ([again(rows(0, 3), 0, 1, 0)], [rows(0, 9), again(rows(9, 2), 9, 8)]):
        batches[:] = repeated
        with pytest.raises(ConfigError, match=r"row \d+: example_id: this example id came before; given: [08]"):
            list(strict.read(first))
    batches[:] = [rows(0, 20)]
    for _ in range(2):
        assert sum(map(len, ids(strict.read(first)))) == 20, "a window that is read again, after an error too"
    batches[:] = [again(rows(20, 2), 20, 19)]
    with pytest.raises(ConfigError, match=r"row 21: example_id: this example id came before; given: 19"):
        list(strict.read(second))
    skipping = reader(lambda: iter(batches), on_bad_row="skip")
    skipping.remember(np.array([20]))
    assert ids(skipping.read(second)) == [[19]]
    assert skipping.skipped == {"example_id": {"this example id came before": 1}}
    batches[:] = [rows(0, 20)]
    assert sum(map(len, ids(skipping.read(first)))) == 20, "a window that lies before is read again"


def test_ids_keep_their_type_from_window_to_window() -> None:
    batches = [rows(0, 2)]
    log = reader(lambda: iter(batches), on_bad_row="skip")
    assert ids(log.read(exfm.sources.Window(0, 0, 10))) == [[0, 1]]
    assert log.id_kinds == {"example_id": "integers", "item": "integers"}
    other = rows(10, 2).set_column(2, "item", pa.array(["10", "11"]))
    batches[:] = [other]
    with pytest.raises(ConfigError, match="row 10: item: the column holds string, and held integers until now"):
        list(log.read(exfm.sources.Window(1, 10, 20)))
    later = reader(lambda: iter([rows(20, 1)]))
    later.id_kinds = {"item": "strings"}
    with pytest.raises(ConfigError, match="item: the column holds int64, and held strings until now"):
        list(later.read(exfm.sources.Window(2, 20, 30)))
    nothing = rows(10, 2).set_column(2, "item", pa.nulls(2, pa.string()))
    batches[:] = [nothing, rows(12, 1)]
    assert ids(log.read(exfm.sources.Window(1, 10, 20))) == [[10, 11, 12]], "a column without values has no type"


def test_every_window_begins_anew() -> None:
    """Bad rows are counted per window, and a row before the window's start goes backwards."""
    bad = rows(0, 2).set_column(3, "click", pa.array([0, 7], pa.int8()))
    skipping = reader(lambda: iter([bad]), on_bad_row="skip")
    for _ in range(2):
        assert ids(skipping.read(WINDOW)) == [[0]]
        assert skipping.skipped == {"click": {"a label is 0 or 1, or null where it is not known": 1}}
    with pytest.raises(ConfigError, match="row 0: event_time: time goes backwards"):
        list(reader(lambda: iter([rows(0, 2)])).read(exfm.sources.Window(1, 1, 9)))


def test_the_sources_exception_reaches_the_caller_after_its_rows() -> None:
    def failing() -> Iterator[pa.RecordBatch]:
        yield rows(0, 4)
        raise OSError("the disk is gone")

    read = reader(failing).read(WINDOW)
    assert next(read).batch.size == 4
    with pytest.raises(OSError, match="the disk is gone"):
        next(read)


def test_an_abandoned_reader_stops_and_closes_its_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[pa.RecordBatch]:
        try:
            for first in range(0, 10**9, 4):
                yield rows(first, 4)
        finally:
            closed.set()

    read = reader(endless).read(WINDOW)
    next(read)
    assert READER in [thread.name for thread in threading.enumerate()]
    read.close()  # type: ignore[attr-defined]
    assert READER not in [thread.name for thread in threading.enumerate()]
    assert closed.is_set()


def test_the_source_is_read_a_few_chunks_ahead_only() -> None:
    produced: list[weakref.ref[Any]] = []
    limit, passed = 5, threading.Event()

    def endless() -> Iterator[pa.RecordBatch]:
        for first in range(0, 10**9, 4):
            batch = rows(first, 4)
            produced.append(weakref.ref(batch))
            if len(produced) > limit:
                passed.set()
            yield batch
            del batch

    read = reader(endless).read(WINDOW)
    next(read)
    # A chunk in the caller's hands, two in the queue, and a chunk waiting to enter it.
    assert not passed.wait(timeout=0.3)
    limit = 10**9
    for _ in range(30):
        next(read)
    read.close()  # type: ignore[attr-defined]
    gc.collect()
    assert len(produced) >= 31
    assert sum(batch() is not None for batch in produced) <= 8


def test_a_window_that_was_begun_is_read_once_and_its_error_is_raised_when_it_is_read() -> None:
    calls: list[int] = []

    def batches() -> Iterator[pa.RecordBatch]:
        calls.append(len(calls))
        yield rows(0, 3)
        if len(calls) == 1:
            yield rows(3, 1).drop_columns(["item"])

    log = reader(batches)
    log.begin(WINDOW)
    with pytest.raises(ConfigError, match=r"log, row 3: item: the column is missing"):
        list(log.read(WINDOW))
    assert calls == [0]
    log.begin(WINDOW)
    later = exfm.sources.Window(1, WINDOW.start_us, 2 * WINDOW.end_us)
    assert ids(log.read(later)) == [[0, 1, 2]], "another window than the one that was begun"
    log.begin(WINDOW)
    log.close()
    assert ids(log.read(WINDOW)) == [[0, 1, 2]]
