"""A committed window's supervision, followed along the stream in constant memory.

A supervision file holds its rows in the order of the stream, so the rows of a chunk are a stretch of it.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace
from exfm.supervision.joiner import SupervisionIndex, SupervisionRows

_UNUSED = ("window", "snapshot")


class SupervisionStream:
    """Gives the supervision of one chunk after another.

    In memory are the rows that the chunk and the next one may need, in spans, and one span that is read ahead.

    Args:
        record: the committed file.
        span_rows: rows that are read at once; by default about two MiB.

    Raises:
        RunError: the file is missing or corrupt.
    """

    def __init__(self, workspace: Workspace, record: FileRecord, span_rows: int | None = None) -> None:
        self._bytes = workspace.open_checked(record)
        file = pq.ParquetFile(self._bytes)
        columns = [name for name in file.schema_arrow.names if name not in _UNUSED]
        schema = pa.schema([file.schema_arrow.field(name) for name in columns])
        self._nothing = SupervisionRows.from_arrow(pa.RecordBatch.from_pylist([], schema))
        self._batches = file.iter_batches(span_rows or (16_384 if "embedding" in columns else 65_536), columns=columns)
        self._held: deque[SupervisionRows] = deque()
        self._reader = ThreadPoolExecutor(1, "exfm-supervision")
        self._next = self._reader.submit(self._read)
        self._ended = False

    @property
    def rows_held(self) -> int:
        """How many rows the chunk and the next one may need."""
        return sum(span.example_id.numel() for span in self._held)

    def between(self, first_us: int, last_us: int) -> SupervisionIndex:
        """The rows with ``first_us <= event time <= last_us``; ``first_us`` never decreases from call to call."""
        while self._held and self._held[0].event_time_us[-1] < first_us:
            self._held.popleft()
        while not self._ended and not self._reaches(last_us):
            span = self._next.result()
            self._ended = span is None
            if span is not None:
                self._next = self._reader.submit(self._read)
                if span.event_time_us[-1] >= first_us:
                    self._held.append(span)
        return SupervisionRows.cat(
            [_between(span, first_us, last_us) for span in self._held] or [self._nothing]
        ).index()

    def close(self) -> None:
        """Closes the file."""
        self._reader.shutdown()
        self._bytes.close()

    def _reaches(self, last_us: int) -> bool:
        """Whether rows past a time have been read: rows of equal times may be in several spans."""
        return bool(self._held) and bool(self._held[-1].event_time_us[-1] > last_us)

    def _read(self) -> SupervisionRows | None:
        batch = next(self._batches, None)
        return None if batch is None else SupervisionRows.from_arrow(batch)


def _between(rows: SupervisionRows, first_us: int, last_us: int) -> SupervisionRows:
    times = rows.event_time_us.numpy()
    start, stop = np.searchsorted(times, first_us, side="left"), np.searchsorted(times, last_us, side="right")
    return rows.slice(int(start), int(stop))
