"""slice_rows: shards are disjoint and complete, rows keep their order, and a batch says where it came from."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

import exfm

sizes_of_batches = st.lists(st.integers(0, 7), max_size=7)


def batches(sizes: list[int]) -> Iterator[pa.RecordBatch]:
    """Numbered rows; every batch is a file's rows from 1000 times its index on."""
    first = 0
    for index, size in enumerate(sizes):
        yield exfm.sources.Origin(f"file {index}", 1000 * index).mark(
            pa.record_batch({"row": range(first, first + size)})
        )
        first += size


def rows(read: Iterator[pa.RecordBatch]) -> list[int]:
    numbers: list[int] = []
    for batch in read:
        assert batch.num_rows
        numbers += batch.column("row").to_pylist()
    return numbers


@given(sizes=sizes_of_batches, count=st.integers(1, 5))
def test_shards_against_slices_of_a_list(sizes: list[int], count: int) -> None:
    everything = list(range(sum(sizes)))
    for index in range(count):
        shard = exfm.sources.Shard(index, count)
        assert rows(exfm.sources.slice_rows(batches(sizes), shard)) == everything[index::count]
    together: list[int] = []
    for index in range(count):
        together += rows(exfm.sources.slice_rows(batches(sizes), exfm.sources.Shard(index, count)))
    assert sorted(together) == everything


@given(sizes=sizes_of_batches)
def test_without_shards_every_row_can_be_found_in_its_file(sizes: list[int]) -> None:
    firsts = {f"file {index}": (1000 * index, sum(sizes[:index])) for index in range(len(sizes))}
    for batch in exfm.sources.slice_rows(batches(sizes), exfm.sources.Shard()):
        origin = exfm.sources.Origin.from_batch(batch)
        first_in_file, first_in_stream = firsts[origin.file]
        assert batch.column("row")[0].as_py() == origin.row - first_in_file + first_in_stream


def test_rows_are_read_as_they_are_asked_for() -> None:
    asked: list[int] = []

    def endless() -> Iterator[pa.RecordBatch]:
        for index in range(10**9):
            asked.append(index)
            yield pa.record_batch({"row": [index]})

    read = exfm.sources.slice_rows(endless(), exfm.sources.Shard(1, 2))
    assert next(read).column("row").to_pylist() == [1]
    assert asked == [0, 1]


def test_an_unmarked_batch_comes_from_the_stream() -> None:
    batch = pa.record_batch({"row": [1]})
    assert exfm.sources.Origin.from_batch(batch) == exfm.sources.Origin("stream", 0)
    marked = exfm.sources.Origin("données/é 1.parquet", 2**40).mark(batch)
    assert exfm.sources.Origin.from_batch(marked) == exfm.sources.Origin("données/é 1.parquet", 2**40)
    assert exfm.sources.Origin.from_batch(marked.slice(0, 1)) == exfm.sources.Origin.from_batch(marked)
    assert marked.column("row").buffers()[1].address == batch.column("row").buffers()[1].address


def test_a_window_is_named_by_its_start() -> None:
    assert str(exfm.sources.Window(3, 1_600_000_000_000_000, 1_600_003_600_000_000)) == "2020-09-13T12:26:40Z"
