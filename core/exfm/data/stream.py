"""Reads a window as decoded chunks of equal size; a background thread reads, checks and decodes ahead."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from queue import Full, Queue

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from exfm.config.checks import filter_columns
from exfm.config.experiment import Condition, StreamConfig
from exfm.data.batch import Batch
from exfm.data.blank import blank_batch
from exfm.data.column_types import IdKind, unify
from exfm.data.decode import decode
from exfm.data.repeats import SeenIds, WindowIds
from exfm.data.skips import Skips, add_counts, in_words, sum_counts
from exfm.data.source_errors import source_errors
from exfm.data.time_order import in_time_order
from exfm.data.traffic import UnmetConditions, rows_where
from exfm.data.validation import RowChecker
from exfm.interfaces.data_source import DataSource, Origin, Shard, Window, slice_rows
from exfm.interfaces.schema import FeatureSchema

logger = logging.getLogger(__name__)

# Chunks in the queue: enough to even out slow reads; more would only take memory.
_AHEAD = 2
# How long the thread waits for room in the queue before it looks whether the reader was closed.
_POLL_S = 0.1


@dataclass(frozen=True)
class Chunk:
    """Decoded rows, and the indices of the rows that each model sees (None: all rows)."""

    batch: Batch
    rows: Mapping[str, Tensor | None]


class ChunkReader:
    """Reads windows of a source as chunks.

    Args:
        stream: chunk size, and the treatment of bad rows.
        where: each model's conditions, by model name.
        shard: the shard of each window's rows that is read.
        unique: whether a repeated example id makes a bad row.

    Attributes:
        skipped: bad rows left out of the window that was read last, by column and reason.
        id_kinds: the kind of each column of ids, from windows that have been read to their end; may be set
            to the kinds that an earlier process has seen.
    """

    _begun: tuple[Window, RowChecker, _Prefetcher] | None = None

    def __init__(
        self,
        source: DataSource,
        schema: FeatureSchema,
        stream: StreamConfig,
        where: Mapping[str, Mapping[str, Condition]],
        shard: Shard,
        unique: bool = True,
    ) -> None:
        self.source = source
        self.schema = schema
        self.stream = stream
        self.where = where
        self.shard = shard
        self.unique = unique
        self.skipped: dict[str, dict[str, int]] = {}
        self.id_kinds: dict[str, IdKind] = {}
        self._seen = SeenIds()
        # End of the newest window that has been read to its end.
        self._read_us: int | None = None
        self._rows = 0
        self._left_out: dict[str, dict[str, int]] = {}
        self._reported = 0
        self._columns = filter_columns(schema)
        self._unmet = UnmetConditions(where, self._columns)

    @property
    def has_read(self) -> bool:
        """Tells whether a window has been read to its end."""
        return self._read_us is not None

    def remember(self, example_ids: npt.NDArray[np.int64]) -> None:
        """Remembers the example ids of windows that an earlier process has read: if repeated, they are bad."""
        self._seen.add(example_ids.view(np.uint64))

    def read(self, window: Window, only: Collection[str] | None = None) -> Iterator[Chunk]:
        """Yields the window's chunks, decoded ahead of the caller; all but the last have ``chunk_rows`` rows.

        With several shards, a chunk contains this shard's rows of ``chunk_rows`` rows of the stream. A window that
        begins before the end of a window that has been read is read again, for example for late labels: its repeated
        ids and bad rows are not counted a second time.

        Args:
            only: names of the stream's units (``StreamPart``) that are read; all by default.

        Raises:
            ConfigError: a row breaks the schema and bad rows are not skipped, or too many are skipped; a column has a
                type that the schema does not allow, or ids of another type than before.
        """
        if self._begun is None or self._begun[0] != window:
            self.begin(window, only)
        assert self._begun is not None
        (_, checker, prefetcher), self._begun = self._begun, None
        try:
            yield from prefetcher
        finally:
            prefetcher.close()
        # Only after the last chunk: an error or an abandoned window leaves no trace, and may be read again.
        self._commit(window, checker)

    def begin(self, window: Window, only: Collection[str] | None = None) -> None:
        """Begins to read ahead the window that ``read`` will be called for next; ``read`` raises its errors."""
        self.close()
        again = self._is_again(window)
        ids = None
        if self.unique:
            # A window that is read again would meet its own ids among those of earlier windows.
            ids = WindowIds(SeenIds() if again else self._seen)
        checker = RowChecker(
            self.schema,
            self.stream.on_bad_row == "skip",
            newest_us=window.start_us,
            in_order=self.source.in_order,
            ids=ids,
            id_kinds=dict(self.id_kinds),
            skips=Skips(1.0 if again else self.stream.max_skipped_share, self._rows, sum_counts(self._left_out)),
        )
        self._begun = window, checker, _Prefetcher(self._chunks(window, checker, only))

    def _is_again(self, window: Window) -> bool:
        return self._read_us is not None and window.start_us < self._read_us

    def _commit(self, window: Window, checker: RowChecker) -> None:
        """Keeps the counts, ids and kinds of a window that has been read to its end, for the windows after it."""
        self.skipped = checker.skips.counts()
        self.id_kinds |= checker.id_kinds
        if self._is_again(window):
            return
        self._read_us = window.end_us
        # A single process warns, because the shards of a window have similar rows.
        if self.shard.index == 0:
            self._unmet.warn()
        self._rows += checker.skips.rows
        add_counts(self._left_out, self.skipped)
        if checker.ids is not None:
            for ids in checker.ids.all():
                self._seen.add(ids)

    def warn_left_out(self) -> None:
        """Logs how many rows have been left out, and why, where there are more than at the last call."""
        rows = sum_counts(self._left_out)
        if rows > self._reported:
            why = in_words(self._left_out)
            logger.warning("%d of %d rows were left out (stream.on_bad_row: skip): %s", rows, self._rows, why)
        self._reported = rows

    def close(self) -> None:
        """Stops reading ahead a window that was begun and not read."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun[2].close()

    def empty_chunk(self) -> Chunk:
        """Makes a chunk without rows, for a process that has read all of its rows while another has some left."""
        none = torch.zeros(0, dtype=torch.int64)
        rows = {model: none if where else None for model, where in self.where.items()}
        return Chunk(blank_batch(self.schema, 0), rows)

    def _chunks(self, window: Window, checker: RowChecker, only: Collection[str] | None) -> Iterator[Chunk]:
        columns = self._columns
        # Rows of a source that is not in order have no position before they are sorted.
        shard = self.shard if self.source.in_order else Shard()
        batches = _read_source(self.source, window, shard)
        if only is not None:
            batches = (batch for batch in batches if Origin.from_batch(batch).file in only)
        checked: Iterator[pa.RecordBatch] = map(checker.check, batches)
        if not self.source.in_order:
            checked = slice_rows(in_time_order(checked, self.schema), self.shard)
        for rows in _regroup(checked, self.stream.chunk_rows, self.shard):
            example_id = self.schema.example_id
            picked = {model: rows_where(rows, where, columns, example_id) for model, where in self.where.items()}
            self._unmet.add(rows, picked)
            yield Chunk(decode(rows, self.schema), picked)


def _read_source(source: DataSource, window: Window, shard: Shard) -> Iterator[pa.RecordBatch]:
    # The source runs alone in the block: errors of the consumer are not the source's.
    with source_errors():
        yield from source.read(window, shard)


def _regroup(batches: Iterator[pa.RecordBatch], size: int, shard: Shard) -> Iterator[pa.RecordBatch]:
    """Regroups rows into batches of ``size`` rows; the last batch may be smaller.

    A shard has every ``shard.count``-th row of the stream, and its batch those among ``size`` rows of the stream.
    """
    # Batch `number` covers the stream's rows from number * size; the first of the shard's has the offset below.
    sizes = (len(range((shard.index - number * size) % shard.count, size, shard.count)) for number in count())
    needed = next(sizes)
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        # Without origin: a chunk may mix files, and batches of unequal metadata do not concatenate.
        pending.append(batch.replace_schema_metadata(None))
        if len(pending) > 1 and not pending[-1].schema.equals(pending[0].schema):
            pending = unify(pending)
        rows += batch.num_rows
        while rows >= needed:
            table = pa.Table.from_batches(pending)
            yield _to_batch(table.slice(0, needed))
            pending = table.slice(needed).to_batches()
            rows -= needed
            needed = next(sizes)
    if rows:
        yield _to_batch(pa.Table.from_batches(pending))


def _to_batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


class _Prefetcher:
    """Runs an iterator in a thread, a few items ahead; the consumer gets its exception after the items before it."""

    def __init__(self, chunks: Iterator[Chunk]) -> None:
        self._queue: Queue[Chunk | BaseException | None] = Queue(maxsize=_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(chunks,), name="exfm-reader", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Chunk]:
        """Yields the items in order."""
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
            # Not swallowed: the consumer raises it.
            self._put(error)

    def _put(self, item: Chunk | BaseException | None) -> bool:
        """Puts an item into the queue; returns False where the consumer has closed it."""
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=_POLL_S)
            except Full:
                continue
            return True
        return False
