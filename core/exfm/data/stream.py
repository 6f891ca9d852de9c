"""Reads a window as decoded chunks of equal size; a background thread reads, checks and decodes ahead.

Where the source splits a window between processes, each of them reads and checks a portion in a thread, the processes
exchange rows, and a second thread decodes them.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from exfm.config.checks import filter_columns
from exfm.config.experiment import Condition, StreamConfig
from exfm.data.batch import Batch
from exfm.data.blank import blank_batch
from exfm.data.column_types import IdKind
from exfm.data.decode import decode
from exfm.data.exchanged_chunks import exchanged_chunks
from exfm.data.positions import Positions
from exfm.data.prefetcher import Prefetcher
from exfm.data.regroup import regroup
from exfm.data.repeats import SeenIds, WindowIds
from exfm.data.row_exchange import RowExchange
from exfm.data.skips import SkipLog, Skips, add_counts, in_words, sum_counts
from exfm.data.sorted_rows import SortedRows, sorted_rows
from exfm.data.source_errors import source_errors
from exfm.data.time_order import in_time_order
from exfm.data.traffic import UnmetConditions, rows_where
from exfm.data.unique_rows import leave_out_repeats
from exfm.data.validation import RowChecker
from exfm.interfaces.data_source import DataSource, Origin, Shard, Window, slice_rows
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.interfaces.schema import FeatureSchema

logger = logging.getLogger(__name__)

# Chunks in the queue: enough to even out slow reads; more would only take memory.
_AHEAD = 2
# Rows of a portion that wait for rows of other processes take so much memory, so that each can read a row group ahead.
_PORTION_BYTES = 1 << 28


@dataclass(frozen=True)
class Chunk:
    """Decoded rows, and the indices of the rows that each model sees (None: all rows)."""

    batch: Batch
    rows: Mapping[str, Tensor | None]


@dataclass(frozen=True)
class _Reading:
    """A window that is being read ahead: as chunks, or as a portion of which the processes exchange rows."""

    window: Window
    checker: RowChecker
    ids: WindowIds | None
    chunks: Prefetcher[Chunk] | None = None
    portion: Prefetcher[SortedRows] | None = None

    def close(self) -> None:
        """Ends the thread."""
        for prefetcher in (self.chunks, self.portion):
            if prefetcher is not None:
                prefetcher.close()


class ChunkReader:
    """Reads windows of a source as chunks.

    Args:
        stream: chunk size, and the treatment of bad rows.
        where: each model's conditions, by model name.
        shard: the shard of each window's rows that is read.
        process_group: the processes that read the other shards; they call the reader alike. Where the source ``splits``
            they divide the reading, too.
        unique: whether a repeated example id makes a bad row.

    Attributes:
        skipped: bad rows left out of the window that was read last, by column and reason.
        id_kinds: the kind of each column of ids, from windows that have been read to their end; may be set
            to the kinds that an earlier process has seen.
    """

    _begun: _Reading | None = None

    def __init__(
        self,
        source: DataSource,
        schema: FeatureSchema,
        stream: StreamConfig,
        where: Mapping[str, Mapping[str, Condition]],
        shard: Shard,
        process_group: ProcessGroup = SINGLE_PROCESS,
        unique: bool = True,
    ) -> None:
        self.source = source
        self.schema = schema
        self.stream = stream
        self.where = where
        self.shard = shard
        self.process_group = process_group
        self.unique = unique
        self.skipped: dict[str, dict[str, int]] = {}
        self.id_kinds: dict[str, IdKind] = {}
        self._skips_bad = stream.on_bad_row == "skip"
        self._splits = source.splits and not source.in_order and process_group.world_size > 1
        # Only a source in order can cut a window by positions, and only where no row is left out before that.
        self._reads_shard = source.in_order and not self._skips_bad
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

    @property
    def compares_all_ids(self) -> bool:
        """Tells whether the example ids of all shards are compared."""
        return self.shard.count == 1 or not self._reads_shard

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
        if self._begun is None or self._begun.window != window:
            self.begin(window, only)
        assert self._begun is not None
        reading, self._begun = self._begun, None
        try:
            if reading.chunks is not None:
                yield from reading.chunks
                skips, id_kinds = reading.checker.skips, reading.checker.id_kinds
                ids = [] if reading.ids is None else reading.ids.all()
            else:
                assert reading.portion is not None
                skips, id_kinds = self._skips(window), dict(self.id_kinds)
                exchange = RowExchange(self.process_group, self.schema, reading.ids, id_kinds, self._skips_bad, skips)
                rounds = exchange.rounds(reading.portion)
                yield from exchanged_chunks(rounds, self._chunks, self.stream.chunk_rows, _AHEAD)
                ids = [exchange.ids_of_all]
        finally:
            reading.close()
        # Only after the last chunk: an error or an abandoned window leaves no trace, and may be read again.
        self._commit(window, skips, id_kinds, ids)

    def begin(self, window: Window, only: Collection[str] | None = None) -> None:
        """Begins to read ahead the window that ``read`` will be called for next; ``read`` raises its errors."""
        self.close()
        ids = None
        if self.unique:
            # A window that is read again would meet its own ids among those of earlier windows.
            ids = WindowIds(SeenIds() if self._is_again(window) else self._seen)
        # Sorted rows are compared after sorting: which of them is left out depends on their order.
        compares_sorted = self._splits or (self._skips_bad and not self.source.in_order)
        checker = RowChecker(
            self.schema,
            self._skips_bad,
            newest_us=window.start_us,
            in_order=self.source.in_order,
            ids=None if compares_sorted else ids,
            id_kinds=dict(self.id_kinds),
            skips=SkipLog() if self._splits else self._skips(window),
            positions=Positions() if self._splits or (compares_sorted and self.unique) else None,
        )
        if self._splits:
            rows = sorted_rows(self._batches(window, only), checker, self.schema)
            portion = Prefetcher(rows, _PORTION_BYTES, lambda item: item.rows.nbytes)
            self._begun = _Reading(window, checker, ids, portion=portion)
        else:
            chunks = self._chunks(self._checked(window, only, checker, ids))
            self._begun = _Reading(window, checker, ids, chunks=Prefetcher(chunks, _AHEAD))

    def _skips(self, window: Window) -> Skips:
        most = 1.0 if self._is_again(window) else self.stream.max_skipped_share
        return Skips(most, self._rows, sum_counts(self._left_out))

    def _is_again(self, window: Window) -> bool:
        return self._read_us is not None and window.start_us < self._read_us

    def _commit(
        self,
        window: Window,
        skips: Skips,
        id_kinds: Mapping[str, IdKind],
        ids: Iterable[npt.NDArray[np.uint64]],
    ) -> None:
        """Keeps the counts, ids and kinds of a window that has been read to its end, for the windows after it."""
        self.skipped = skips.counts()
        self.id_kinds |= id_kinds
        if self._is_again(window):
            return
        self._read_us = window.end_us
        # A single process warns, because the shards of a window have similar rows.
        if self.shard.index == 0:
            self._unmet.warn()
        self._rows += skips.rows
        add_counts(self._left_out, self.skipped)
        for some in ids:
            self._seen.add(some)

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
            begun.close()

    def empty_chunk(self) -> Chunk:
        """Makes a chunk without rows, for a process that has read all of its rows while another has some left."""
        none = torch.zeros(0, dtype=torch.int64)
        rows = {model: none if where else None for model, where in self.where.items()}
        return Chunk(blank_batch(self.schema, 0), rows)

    def _batches(self, window: Window, only: Collection[str] | None) -> Iterator[pa.RecordBatch]:
        """Yields the rows that this process reads, as the source yields them."""
        # Rows of a source that is not in order have no position before they are sorted.
        batches = _read_source(self.source, window, self.shard if self._splits or self._reads_shard else Shard())
        if only is not None:
            batches = (batch for batch in batches if Origin.from_batch(batch).file in only)
        return batches

    def _checked(
        self, window: Window, only: Collection[str] | None, checker: RowChecker, ids: WindowIds | None
    ) -> Iterator[pa.RecordBatch]:
        """Yields the good rows of this process's shard, in order."""
        checked: Iterator[pa.RecordBatch] = map(checker.check, self._batches(window, only))
        if not self.source.in_order:
            checked = in_time_order(checked, self.schema)
        if checker.positions is not None:
            assert ids is not None
            checked = leave_out_repeats(checked, self.schema, ids, checker.positions, checker.skips)
        return checked if self._reads_shard else slice_rows(checked, self.shard)

    def _chunks(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Chunk]:
        """Cuts and decodes the good rows of this process's shard, in order."""
        for rows in regroup(batches, self.stream.chunk_rows, self.shard):
            example_id = self.schema.example_id
            picked: dict[str, Tensor | None] = {}
            for model, where in self.where.items():
                picked[model] = rows_where(rows, where, self._columns, example_id)
            self._unmet.add(rows, picked)
            yield Chunk(decode(rows, self.schema), picked)


def _read_source(source: DataSource, window: Window, shard: Shard) -> Iterator[pa.RecordBatch]:
    # The source runs alone in the block: errors of the consumer are not the source's.
    with source_errors():
        yield from source.read(window, shard)
