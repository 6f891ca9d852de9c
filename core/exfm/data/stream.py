"""A window's rows as decoded chunks of equal size, read, checked and decoded ahead in a background thread."""

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
from exfm.data.column_types import IdKind, alike
from exfm.data.decode import decode
from exfm.data.repeats import SeenIds, WindowIds
from exfm.data.skips import Skips, add_counts, in_words, sum_counts
from exfm.data.source_errors import source_errors
from exfm.data.traffic import Unseen, rows_where
from exfm.data.validation import RowChecker
from exfm.interfaces.data_source import DataSource, Origin, Shard, Window
from exfm.interfaces.schema import FeatureSchema

logger = logging.getLogger(__name__)

_AHEAD = 2
_POLL_S = 0.1


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
        unique: whether an example id that comes again makes a bad row.

    Attributes:
        skipped: bad rows left out of the window that was read last, by column and reason.
        id_kinds: what each column of ids holds, integers or strings, as far as windows have been read to their end; may
            be set to what an earlier process has seen.
    """

    _begun: tuple[Window, RowChecker, _Ahead] | None = None

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
        self._read_us: int | None = None  # windows before this time have been read to their end
        self._rows = 0
        self._left_out: dict[str, dict[str, int]] = {}
        self._told = 0
        self._columns = filter_columns(schema)
        self._unseen = Unseen(where, self._columns)

    @property
    def has_read(self) -> bool:
        """Whether a window has been read to its end."""
        return self._read_us is not None

    def remember(self, example_ids: npt.NDArray[np.int64]) -> None:
        """Adds the example ids of windows that an earlier process has read to those that may not come again."""
        self._seen.add(example_ids.view(np.uint64))

    def read(self, window: Window, only: Collection[str] | None = None) -> Iterator[Chunk]:
        """The window's chunks, each of ``chunk_rows`` rows but for the last, decoded ahead of the caller.

        Of a shard, a chunk has the shard's rows of the chunk that the whole stream would have there. A window that
        begins before the end of one that has been read is read again, such as for late labels: its rows are known, and
        counted no more.

        Args:
            only: names of the stream's parts that are read, the others being left out; all by default.

        Raises:
            ConfigError: a row breaks the schema and bad rows are not to be skipped, or too many are; a column has a
                type that cannot be, or ids of another type than before.
        """
        if self._begun is None or self._begun[0] != window:
            self.begin(window, only)
        assert self._begun is not None
        (_, checker, ahead), self._begun = self._begun, None
        try:
            yield from ahead
        finally:
            ahead.close()
        self._keep(window, checker)

    def begin(self, window: Window, only: Collection[str] | None = None) -> None:
        """Begins to read a window that ``read`` will be called for next; what is wrong with it is said there."""
        self.close()
        again = self._is_again(window)
        most = 1.0 if again else self.stream.max_skipped_share
        checker = RowChecker(
            self.schema,
            self.stream.on_bad_row == "skip",
            newest_us=window.start_us,
            ids=WindowIds(SeenIds() if again else self._seen) if self.unique else None,
            id_kinds=dict(self.id_kinds),
            skips=Skips(most, self._rows, sum_counts(self._left_out)),
        )
        self._begun = window, checker, _Ahead(self._chunks(window, checker, only))

    def _is_again(self, window: Window) -> bool:
        return self._read_us is not None and window.start_us < self._read_us

    def _keep(self, window: Window, checker: RowChecker) -> None:
        """Takes over what a window that has been read to its end says about those to come."""
        self.skipped = checker.skips.counts()
        self.id_kinds |= checker.id_kinds
        if self._is_again(window):
            return
        self._read_us = window.end_us
        if self.shard.index == 0:
            self._unseen.tell()
        self._rows += checker.skips.rows
        add_counts(self._left_out, self.skipped)
        if checker.ids is not None:
            for ids in checker.ids.all():
                self._seen.add(ids)

    def tell_left_out(self) -> None:
        """Says on stderr how many rows have been left out, and why, where there are more than at the last call."""
        rows = sum_counts(self._left_out)
        if rows > self._told:
            why = in_words(self._left_out)
            logger.warning("%d of %d rows were left out (stream.on_bad_row: skip): %s", rows, self._rows, why)
        self._told = rows

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

    def _chunks(self, window: Window, checker: RowChecker, only: Collection[str] | None) -> Iterator[Chunk]:
        columns = self._columns
        batches = _read(self.source, window, self.shard)
        if only is not None:
            batches = (batch for batch in batches if Origin.of(batch).file in only)
        checked = (checker.check(batch) for batch in batches)
        for rows in _regroup(checked, self.stream.chunk_rows, self.shard):
            picked = {model: rows_where(rows, where, columns) for model, where in self.where.items()}
            self._unseen.add(rows, picked)
            yield Chunk(decode(rows, self.schema), picked)


def _read(source: DataSource, window: Window, shard: Shard) -> Iterator[pa.RecordBatch]:
    with source_errors():
        yield from source.read(window, shard)


def _regroup(batches: Iterator[pa.RecordBatch], size: int, shard: Shard) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of ``size``, the last one smaller.

    Of a shard, whose rows are each ``shard.count``-th of the stream's, a batch has its rows of ``size`` of the stream.
    """
    sizes = (len(range((shard.index - number * size) % shard.count, size, shard.count)) for number in count())
    wanted = next(sizes)
    pending: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        pending.append(batch.replace_schema_metadata(None))
        if len(pending) > 1 and not pending[-1].schema.equals(pending[0].schema):
            pending = alike(pending)
        rows += batch.num_rows
        while rows >= wanted:
            table = pa.Table.from_batches(pending)
            yield _one(table.slice(0, wanted))
            pending = table.slice(wanted).to_batches()
            rows -= wanted
            wanted = next(sizes)
    if rows:
        yield _one(pa.Table.from_batches(pending))


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
