"""Threads that decode row groups ahead change no row, keep within their memory, and end with the reading."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import exfm
from exfm.sources import Origin
from exfm.sources.row_groups import interleave, read_ahead
from exfm.sources.row_groups.order import PlacedGroup
from exfm_plugins.sources.parquet.source import Parquet
from tests.plugins.tables import FIELDS, table


def source(path: Path, **config: Any) -> Parquet:
    return Parquet(Parquet.Config.model_validate(FIELDS | {"path": str(path)} | config))


def read(stream: Parquet) -> list[pa.RecordBatch]:
    time = stream.time_range()
    return list(stream.read(exfm.sources.Window(0, time.start_us, time.end_us - 1)))


def decoders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "exfm-decoder"]


@settings(max_examples=15)
@given(
    times=st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda times: len(set(times)) > 1),
    is_sorted=st.booleans(),
    files=st.integers(1, 3),
    group_rows=st.integers(1, 9),
    threads=st.integers(2, 4),
    most_bytes=st.sampled_from([0, 300, 1 << 20]),
    most_open=st.sampled_from([1, 3, 64]),
)
def test_batches_are_those_of_a_single_thread(
    tmp_path_factory: pytest.TempPathFactory,
    times: list[int],
    is_sorted: bool,
    files: int,
    group_rows: int,
    threads: int,
    most_bytes: int,
    most_open: int,
) -> None:
    """The same batches in the same order with the same origins, of files in order and of those that overlap."""
    folder = tmp_path_factory.mktemp("log")
    rows = table(sorted(times) if is_sorted else times)
    for number in range(files):
        some = rows.filter(pa.array(np.arange(rows.num_rows) % files == number))
        pq.write_table(some, folder / f"{number}.parquet", row_group_size=group_rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interleave, "MOST_OPEN", most_open)
        patch.setattr("exfm.sources.row_groups.source.AHEAD_BYTES", most_bytes)
        expected = read(source(folder, batch_rows=2))
        actual = read(source(folder, batch_rows=2, decode_threads=threads))
    assert [Origin.from_batch(batch) for batch in actual] == [Origin.from_batch(batch) for batch in expected]
    assert all(batch.equals(other) for batch, other in zip(actual, expected, strict=True))
    assert not decoders()


def groups(count: int) -> list[PlacedGroup]:
    return [PlacedGroup(None, number, 0, 1, number, number) for number in range(count)]  # type: ignore[arg-type]


def test_decoded_rows_that_wait_take_bounded_memory() -> None:
    batch = pa.RecordBatch.from_pydict({"a": np.zeros(1000)})
    decoded = threading.Semaphore(0)
    ahead = [0]

    def decode(group: PlacedGroup) -> Iterator[tuple[int, pa.RecordBatch]]:
        for _ in range(20):
            ahead[0] += 1
            decoded.release()
            yield group.index, batch

    threads, allowed = 3, 10
    with read_ahead.ReadAhead(groups(8), decode, threads, allowed * batch.nbytes) as reading:  # type: ignore[arg-type]
        opened = [reading.read(group) for group in groups(8)]
        taken = 0
        for batches in opened:
            for _ in batches:
                taken += 1
                # The batches that wait, those in the threads, and the batch that was asked for.
                assert ahead[0] - taken <= allowed + threads + 1
        assert taken == ahead[0] == 160
    assert not decoders()


def test_an_error_comes_after_the_batches_before_it(tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(table([number * 10 + i for i in range(9)], 10 * number), tmp_path / f"{number}.parquet")
    for threads in (1, 3):
        stream = source(tmp_path, decode_threads=threads, batch_rows=3)
        stream.time_range()
        content = (tmp_path / "1.parquet").read_bytes()
        (tmp_path / "1.parquet").unlink()
        batches = iter(stream.read(exfm.sources.Window(0, 0, 30)))
        before = [next(batches)["example_id"][0].as_py() for _ in range(2)]
        with pytest.raises(FileNotFoundError):
            list(batches)
        assert before == [0, 3] and not decoders()
        (tmp_path / "1.parquet").write_bytes(content)


def test_threads_end_where_a_reading_is_given_up(tmp_path: Path) -> None:
    pq.write_table(table(list(range(90))), tmp_path / "a.parquet", row_group_size=10)
    batches = source(tmp_path, decode_threads=2, batch_rows=3).read(exfm.sources.Window(0, 0, 90))
    next(iter(batches))
    assert decoders()
    batches.close()  # type: ignore[attr-defined]
    assert not decoders()
