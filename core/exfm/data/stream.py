"""A window's rows as decoded chunks of equal size, read, checked and decoded ahead in a background thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import count
from queue import Full, Queue

import pyarrow as pa
import torch
from torch import Tensor

from exfm.config.checks import filter_columns
from exfm.config.experiment import Condition, StreamConfig
from exfm.data.batch import Batch
from exfm.data.blank import blank_batch
from exfm.data.decode import decode
from exfm.data.source_errors import source_errors
from exfm.data.traffic import rows_where
from exfm.data.validation import RowChecker
from exfm.errors import ConfigError
from exfm.interfaces.data_source import DataSource, Shard, TimeRange, Window
from exfm.interfaces.duration import microseconds
from exfm.interfaces.schema import FeatureSchema

_AHEAD = 2
_POLL_S = 0.1


def windows_of(time_range: TimeRange, length: timedelta) -> Iterator[Window]:
    """Cuts a time range into windows, each starting at a multiple of the length since 1970 but for the first."""
    step = microseconds(length)
    start, index = time_range.start_us, 0
    while start < time_range.end_us:
        end = (start // step + 1) * step
        yield Window(index, start, end)
        start, index = end, index + 1


@dataclass(frozen=True)
class Chunk:
    """Decoded rows, and which of them each model sees (None: all)."""

    batch: Batch
    rows: Mapping[str, Tensor | None]


class ChunkReader:
    """Reads windows of a source as chunks.

    Args:
        stream: chunk size, and what to do about bad rows.
        where: each model's conditions, by model name.
        shard: the part of each window's rows that is read.

    Attributes:
        skipped: bad rows left out of the window that was read last.
    """

    _begun: tuple[Window, RowChecker, _Ahead] | None = None

    def __init__(
        self,
        source: DataSource,
        schema: FeatureSchema,
        stream: StreamConfig,
        where: Mapping[str, Mapping[str, Condition]],
        shard: Shard,
    ) -> None:
        self.source = source
        self.schema = schema
        self.stream = stream
        self.where = where
        self.shard = shard
        self.skipped = 0

    def read(self, window: Window) -> Iterator[Chunk]:
        """The window's chunks, each of ``chunk_rows`` rows but for the last, decoded ahead of the caller.

        Where the type of a column changes, from one file to the next, a chunk ends too. Of a shard, a chunk has the
        shard's rows of the chunk that the whole stream would have there.

        Raises:
            ConfigError: a row breaks the schema and bad rows are not to be skipped; the type of a column changes and
                this is a shard.
        """
        if self._begun is None or self._begun[0] != window:
            self.begin(window)
        assert self._begun is not None
        (_, checker, ahead), self._begun = self._begun, None
        try:
            yield from ahead
        finally:
            ahead.close()
        self.skipped = checker.skipped

    def begin(self, window: Window) -> None:
        """Begins to read a window that ``read`` will be called for next; what is wrong with it is said there."""
        self.close()
        checker = RowChecker(self.schema, self.stream.on_bad_row == "skip", newest_us=window.start_us)
        self._begun = window, checker, _Ahead(self._chunks(window, checker))

    def close(self) -> None:
        """Leaves a window that was begun and not read."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun[2].close()

    def nothing(self) -> Chunk:
        """A chunk without rows, for a process that has read all of its rows while another has some left."""
        none = torch.zeros(0, dtype=torch.int64)
        rows = {model: none if where else None for model, where in self.where.items()}
        return Chunk(blank_batch(self.schema, 0), rows)

    def _chunks(self, window: Window, checker: RowChecker) -> Iterator[Chunk]:
        columns = filter_columns(self.schema)
        checked = (checker.check(batch) for batch in _read(self.source, window, self.shard))
        for rows in _regroup(checked, self.stream.chunk_rows, self.shard):
            picked = {model: rows_where(rows, where, columns) for model, where in self.where.items()}
            yield Chunk(decode(rows, self.schema), picked)


def _read(source: DataSource, window: Window, shard: Shard) -> Iterator[pa.RecordBatch]:
    with source_errors():
        yield from source.read(window, shard)


def _regroup(batches: Iterator[pa.RecordBatch], size: int, shard: Shard) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of ``size``; smaller ones at the end and before a change of type.

    Of a shard, whose rows are each ``shard.count``-th of the stream's, a batch has its rows of ``size`` of the stream.
    """
    sizes = (len(range((shard.index - number * size) % shard.count, size, shard.count)) for number in count())
    wanted = next(sizes)
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        if pending and not batch.schema.equals(pending[0].schema):
            if shard.count > 1:
                raise ConfigError(_mixed_types(pending[0].schema, batch.schema))
            yield _one(pa.Table.from_batches(pending))
            pending, rows = [], 0
        pending.append(batch.replace_schema_metadata(None))
        rows += batch.num_rows
        while rows >= wanted:
            table = pa.Table.from_batches(pending)
            yield _one(table.slice(0, wanted))
            pending = table.slice(wanted).to_batches()
            rows -= wanted
            wanted = next(sizes)
    if rows:
        yield _one(pa.Table.from_batches(pending))


def _mixed_types(before: pa.Schema, now: pa.Schema) -> str:
    name = next(field.name for field in before if not field.equals(now.field(field.name)))
    return (
        f"column {name!r} is {before.field(name).type} in one file of a window and {now.field(name).type} in the next; "
        "several processes need one type: write the files again, or run in one process"
    )


def _one(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


class _Ahead:
    """Runs an iterator in a thread, a few items ahead; its exception is raised where they are read."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._queue: Queue[Chunk | BaseException | None] = Queue(maxsize=_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(chunks,), name="exfm-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Chunk]:
        """The items."""
        while True:
            item = self._queue.get()
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Ends the thread, whether or not all items have been read."""
        self._closed.set()
        self._thread.join()

    def _work(self, chunks: Iterator[Chunk]) -> None:
        try:
            for chunk in chunks:
                if not self._put(chunk):
                    return
            self._put(None)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Chunk | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except Full:
                continue
            return True
        return False
