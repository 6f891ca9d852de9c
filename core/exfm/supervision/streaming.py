"""Streams the supervision of a committed window alongside the stream's chunks, in constant memory.

A supervision file holds its rows in the order of the stream, so the rows of a chunk are contiguous in it. A window has
a file of each process that has supervised it, and one of each back-fill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import torch

from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace
from exfm.supervision.joiner import SupervisionIndex, SupervisionRows
from exfm.supervision.row_files import POSITION
from exfm.supervision.stored_rows import StoredRows

# Rows are joined by example id, so that the order of rows with equal times does not matter.
_UNUSED = ("window", "snapshot", POSITION)


class SupervisionStream:
    """Reads the supervision of successive chunks from a committed file.

    It keeps in memory the spans of rows that the current chunk and the next chunk may need, and a prefetched span.

    Args:
        workspace: holds the file.
        record: the committed file.
        span_rows: rows of a span; by default about two MiB.

    Raises:
        RunError: the file is missing or corrupt.
    """

    def __init__(self, workspace: Workspace, record: FileRecord, span_rows: int | None = None) -> None:
        self._rows = StoredRows.open(workspace, record)
        columns = [name for name in self._rows.schema.names if name not in _UNUSED]
        schema = pa.schema(list(map(self._rows.schema.field, columns)))
        self._no_rows = SupervisionRows.from_arrow(pa.RecordBatch.from_pylist([], schema))
        if span_rows is None:
            # About two MiB: a row has some 30 bytes, and some 130 with an embedding of 64 float16.
            span_rows = 16_384 if "embedding" in columns else 65_536
        self._batches = self._rows.batches(span_rows, columns)
        self._spans: deque[SupervisionRows] = deque()
        # A thread reads ahead: decompression overlaps with training, and spans stay in order.
        self._reader = ThreadPoolExecutor(1, "exfm-supervision")
        self._next = self._reader.submit(self._read)
        self._ended = False

    @property
    def buffered_rows(self) -> int:
        """Returns the number of rows in the buffered spans."""
        return sum(span.example_id.numel() for span in self._spans)

    def between(self, first_us: int, last_us: int) -> SupervisionIndex:
        """Returns the rows with ``first_us <= event time <= last_us``; ``first_us`` must not decrease between calls."""
        return self.rows_between(first_us, last_us).index()

    def rows_between(self, first_us: int, last_us: int) -> SupervisionRows:
        """Returns the rows of ``between`` without an index."""
        while self._spans and self._spans[0].event_time_us[-1] < first_us:
            self._spans.popleft()
        while not self._ended and not self._reaches(last_us):
            span = self._next.result()
            self._ended = span is None
            if span is not None:
                self._next = self._reader.submit(self._read)
                if span.event_time_us[-1] >= first_us:
                    self._spans.append(span)
        selected = [_between(span, first_us, last_us) for span in self._spans]
        return SupervisionRows.cat(selected or [self._no_rows])

    def close(self) -> None:
        """Closes the file."""
        self._reader.shutdown()
        self._rows.close()

    def _reaches(self, last_us: int) -> bool:
        """Tells whether rows after a time were read."""
        # Strictly after: rows of equal times may continue in the next span.
        return bool(self._spans) and bool(self._spans[-1].event_time_us[-1] > last_us)

    def _read(self) -> SupervisionRows | None:
        batch = next(self._batches, None)
        return None if batch is None else SupervisionRows.from_arrow(batch)


class MergedSupervision:
    """Reads the supervision of successive chunks from several files of a window, whose examples are distinct.

    Args:
        streams: of the same teacher.
    """

    def __init__(self, streams: Sequence[SupervisionStream]) -> None:
        self._streams = streams

    def between(self, first_us: int, last_us: int) -> SupervisionIndex:
        """Returns the rows of all files with ``first_us <= event time <= last_us``, in the order of time."""
        return self.rows_between(first_us, last_us).index()

    def rows_between(self, first_us: int, last_us: int) -> SupervisionRows:
        """Returns the rows of ``between`` without an index."""
        rows = SupervisionRows.cat([stream.rows_between(first_us, last_us) for stream in self._streams])
        # Stable, so that the result depends on the files alone.
        order = np.argsort(rows.event_time_us.numpy(), kind="stable")
        return rows.take(torch.from_numpy(order))

    def close(self) -> None:
        """Closes the files."""
        for stream in self._streams:
            stream.close()


OpenSupervision = SupervisionStream | MergedSupervision


def open_files(workspace: Workspace, records: Sequence[FileRecord]) -> OpenSupervision:
    """Opens the supervision in some files of a window, at least 1.

    Raises:
        RunError: a file is missing or corrupt.
    """
    streams = [SupervisionStream(workspace, record) for record in records]
    return MergedSupervision(streams) if len(streams) > 1 else streams[0]


def _between(rows: SupervisionRows, first_us: int, last_us: int) -> SupervisionRows:
    times = rows.event_time_us.numpy()
    start, stop = np.searchsorted(times, first_us, side="left"), np.searchsorted(times, last_us, side="right")
    return rows.slice(int(start), int(stop))
