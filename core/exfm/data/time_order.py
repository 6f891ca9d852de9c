"""Sorts the rows of a window by time and example id, at bounded memory.

Batches come in any order. Each says before which time no later batch has a row, so that the rows before it can be
passed on. Rows that wait are sorted runs; beyond ``MEMORY_BYTES`` they are written to a temporary file and mapped into
memory, from where they are merged.

Legend: N rows of a run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.data.column_types import unify
from exfm.data.take_rows import take_rows
from exfm.data.validation import event_times
from exfm.interfaces.data_source import Origin
from exfm.interfaces.schema import FeatureSchema

I64 = npt.NDArray[np.int64]

MEMORY_BYTES = 1 << 29
"""Rows of a window that wait for earlier rows take so much memory at most; the others wait on disk."""

_AT_ONCE = 1 << 14
"""Rows that are taken from each run at once."""

_TIME, _ID = "exfm.time", "exfm.id"


@dataclass
class _Run:
    """Holds rows in order, with their keys (N,); those before ``start`` are taken.

    Attributes:
        all_bytes: memory that the rows take, counted once because rows of many columns take long to count; none if
            they are mapped.
    """

    rows: pa.RecordBatch
    time_N: I64
    id_N: I64
    start: int = 0
    all_bytes: int = 0

    @property
    def left(self) -> int:
        return int(self.time_N.size) - self.start

    @property
    def bytes(self) -> int:
        """Returns the memory that the rows take that are left."""
        return self.all_bytes * self.left // max(1, int(self.time_N.size))

    def position(self, time: int, example_id: int) -> int:
        """Returns the number of rows whose key is at most the given key."""
        first, last = np.searchsorted(self.time_N, [time, time + 1])
        return int(first + np.searchsorted(self.id_N[first:last], example_id, side="right"))


def in_time_order(
    batches: Iterable[pa.RecordBatch], schema: FeatureSchema, memory_bytes: int = MEMORY_BYTES
) -> Iterator[pa.RecordBatch]:
    """Yields the rows of checked batches in the order of time, and of example ids where times are equal.

    Args:
        batches: marked with their ``Origin``, whose ``next_us`` is a time before which no later batch has a row.
        schema: names the columns of time and example id.
        memory_bytes: size of the rows that wait in memory.
    """
    runs: list[_Run] = []
    for batch in batches:
        if batch.num_rows:
            runs.append(_sorted(batch, schema))
        next_us = Origin.from_batch(batch).next_us
        if next_us is not None:
            yield from _merged(runs, next_us)
            runs = [run for run in runs if run.left]
        if sum(run.bytes for run in runs) > memory_bytes:
            runs = _on_disk(runs, schema)
    yield from _merged(runs, None)


def row_keys(rows: pa.RecordBatch, schema: FeatureSchema) -> tuple[I64, I64]:
    """Returns the keys by which checked rows are sorted: times and example ids."""
    id_N = rows.column(schema.example_id).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return event_times(rows, schema), id_N


def _sorted(batch: pa.RecordBatch, schema: FeatureSchema) -> _Run:
    """Sorts the rows of a batch."""
    rows = batch.replace_schema_metadata(None)
    time_N, id_N = row_keys(rows, schema)
    later = np.diff(time_N)
    # Most batches are in order, so that no column needs to be copied.
    if (later > 0).all() or not ((later < 0) | ((later == 0) & (np.diff(id_N) < 0))).any():
        return _Run(rows, time_N, id_N, all_bytes=rows.nbytes)
    order = np.lexsort((id_N, time_N))
    return _Run(take_rows(rows, order), time_N[order], id_N[order], all_bytes=rows.nbytes)


def _merged(runs: Sequence[_Run], before_us: int | None) -> Iterator[pa.RecordBatch]:
    """Takes the rows before a time, or all rows, from the runs, and yields them in order."""
    while True:
        ends: dict[int, int] = {}
        for number, run in enumerate(runs):
            end = run.time_N.size if before_us is None else int(np.searchsorted(run.time_N, before_us))
            if end > run.start:
                ends[number] = end
        if not ends:
            return
        # Up to the lowest key at which some run has given enough rows, so that few rows are in memory at once.
        limits = [
            (int(runs[number].time_N[last]), int(runs[number].id_N[last]))
            for number, end in ends.items()
            if (last := runs[number].start + _AT_ONCE - 1) < end
        ]
        taken: list[_Run] = []
        for number, end in ends.items():
            run = runs[number]
            stop = min(end, run.position(*min(limits))) if limits else end
            if stop > run.start:
                span = slice(run.start, stop)
                rows = run.rows.slice(run.start, stop - run.start)
                taken.append(_Run(rows, run.time_N[span], run.id_N[span]))
                run.start = stop
        yield _joined(taken)


def _joined(runs: list[_Run]) -> pa.RecordBatch:
    """Joins runs to a batch in order."""
    if len(runs) == 1:
        return runs[0].rows
    batches = [run.rows for run in runs]
    if any(batch.schema != batches[0].schema for batch in batches):
        batches = unify(batches)
    order = np.lexsort((np.concatenate([run.id_N for run in runs]), np.concatenate([run.time_N for run in runs])))
    return take_rows(pa.Table.from_batches(batches).combine_chunks().to_batches()[0], order)


def _on_disk(runs: Sequence[_Run], schema: FeatureSchema) -> list[_Run]:
    """Writes the rows of runs, in order, to files that are mapped into memory, and returns runs of them."""
    with tempfile.TemporaryDirectory(prefix="exfm-order-", ignore_cleanup_errors=True) as folder:
        paths: list[Path] = []
        with ExitStack() as stack:
            writer: pa.RecordBatchFileWriter | None = None
            written: pa.Schema | None = None
            for rows in _merged(runs, None):
                run = _sorted(rows, schema)
                # Keys beside the rows, so that times and ids are not decoded again when the file is mapped.
                keyed = run.rows.append_column(_TIME, pa.array(run.time_N)).append_column(_ID, pa.array(run.id_N))
                # A file has a single schema; columns without values may have another type than those with some.
                if writer is None or keyed.schema != written:
                    paths.append(Path(folder, f"{len(paths)}.arrow"))
                    written = keyed.schema
                    writer = stack.enter_context(pa.ipc.new_file(str(paths[-1]), written))
                writer.write_batch(keyed)
        # The files stay as long as they are mapped, though they have no name any more.
        return [run for path in paths for run in _mapped(path)]


def _mapped(path: Path) -> Iterator[_Run]:
    """Maps a file of sorted rows, a run for each batch."""
    file = pa.ipc.open_file(pa.memory_map(str(path)))
    for number in range(file.num_record_batches):
        batch = file.get_batch(number)
        time_N, id_N = (batch.column(name).to_numpy() for name in (_TIME, _ID))
        yield _Run(batch.drop_columns([_TIME, _ID]), time_N, id_N)
