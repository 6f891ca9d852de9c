"""DataSource: a time-ordered stream of examples as Arrow record batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Self

import numpy as np
import pyarrow as pa

from exfm.interfaces.component import Component, ComponentConfig
from exfm.interfaces.download import Download
from exfm.interfaces.schema import FeatureSchema


def utc(time_us: int) -> str:
    """Writes a time in microseconds since 1970 as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Window:
    """A slice of the stream: events with ``start_us <= time < end_us`` (microseconds since 1970, UTC)."""

    index: int
    start_us: int
    end_us: int

    def __str__(self) -> str:
        return utc(self.start_us)


@dataclass(frozen=True)
class Shard:
    """The rows of a window that a process reads: row i belongs to the shard with ``index`` ``i % count``."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class TimeRange:
    """The complete range of the stream: ``start_us <= time < end_us``. It may grow between two calls."""

    start_us: int
    end_us: int


@dataclass(frozen=True)
class StreamPart:
    """A unit of the stream that is added, changed and removed as a whole, such as a file.

    Attributes:
        name: the name that ``Origin.file`` gives its rows.
        version: differs whenever the content may differ: size and modification time, or a store's tag.
        first_us, last_us: bounds of the times of its rows, both included, in microseconds since 1970, UTC.
    """

    name: str
    version: str
    first_us: int
    last_us: int


NeededRows = Mapping[str, Sequence[bool | int | str] | None]
"""Says which rows a reader needs: those in which each column has one of the values. None stands for a condition of
another form, whose column must be there."""


class DataSource(Component, ABC):
    """Base of time-ordered streams.

    A source returns its schema and its time range, and yields the rows of a window in order, at constant memory.
    The core cuts windows, hashes ids and checks values, in the same way for all sources. Reading a window twice yields
    the same rows in the same order. Error messages name the file and the row of a batch that is marked with its
    ``Origin``.

    Raises (from every method):
        ValueError: the user's input is wrong: a path that does not exist, a column that a file lacks. An
            ``exfm.components.NotYetError`` where asking again may help: a folder that is still empty, a file that
            is still being written.
    """

    kind: ClassVar[str] = "data_source"
    in_order: ClassVar[bool] = True
    """Whether ``read`` yields rows in the order of time. The rows of a source that does not are sorted by the core, by
    time and then by example id, at bounded memory; ``Origin.next_us`` says which rows may still come."""
    splits: ClassVar[bool] = False
    """Whether reading a shard of a window costs about a ``count``-th of reading all of it, of a source that is not
    ``in_order``. Each process of a job then reads a shard, and the core sends rows between them. The processes must
    divide a window alike, and every shard should have rows of all of the window's time, so that few rows wait."""
    free_fields: ClassVar[frozenset[str]] = frozenset()
    """Config fields that set where the stream is stored, how it is read or where it ends, but not its rows. They may
    change when a run is resumed, such as the path of a folder that has moved, or the last day."""
    downloads: ClassVar[tuple[Download, ...]] = ()
    """Public logs that this source reads, for ``exfm data get``."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def schema(self) -> FeatureSchema:
        """Returns the columns of a row and their meaning. Must not read the stream's rows."""

    @abstractmethod
    def time_range(self) -> TimeRange:
        """Returns the time for which the stream is complete."""

    @abstractmethod
    def read(self, window: Window, shard: Shard = Shard()) -> Iterator[pa.RecordBatch]:
        """Yields a shard's rows of a window in time order.

        Of a source whose rows are not ``in_order``, rows come in any order, and a shard may be any rows, as long as
        each row of the window is in a single shard. All rows are asked for, unless it ``splits``.
        """

    def parts(self) -> Sequence[StreamPart]:
        """Lists the units that the stream consists of now, so that a later call can distinguish growth from change.

        A window's commit records the units that overlap it. Late rows are counted where such a unit has another version
        later, or a new unit overlaps a committed window. The default, no units, is for a stream that never changes
        before its newest row.
        """
        return ()

    def pin(self, parts: Sequence[StreamPart]) -> bool:
        """Reads, until the next call of ``time_range`` or ``parts``, the units that another process has listed.

        Processes that train a model together must read the same rows. Intended for a stream that grows all the time, of
        which two processes never list the same.

        Args:
            parts: as ``parts`` of a source of this config returned them, a moment ago.

        Returns:
            Whether it does. The default, False, leaves it to the core to list again until all processes agree.
        """
        return False

    def next_event_us(self, from_us: int) -> int | None:
        """Finds the first event at or after a time, so that stretches without events cost nothing.

        Returns:
            The time of the event in microseconds, or any earlier time that is not before ``from_us``; None where there
            is no such event. The default, ``from_us``, is correct for every stream and skips nothing.
        """
        return from_us

    def select(self, schema: FeatureSchema) -> DataSource:
        """Returns the same stream for a reader that needs only the columns of a schema.

        Other columns may then be absent. The default, the source itself, is for a stream that always has all columns.

        Args:
            schema: a subset of this source's schema.
        """
        return self

    def select_rows(self, readers: Sequence[NeededRows]) -> DataSource:
        """Returns the same stream for readers that need only some of its rows.

        Rows that no reader needs are yielded too, because results depend on the position of rows in the stream. Such
        rows may lack all columns but the example id, the time and the columns in ``readers``. They are in batches of
        their own, whose ``Origin`` says so by ``keys_only``. The default, the source itself, is for a stream that
        cannot tell at a lower cost than reading the rows.
        """
        return self


BAD_ROW = "exfm.bad_row"
"""Column with the reasons why rows of a batch cannot be read, null for the others."""
ROW_NUMBER = "exfm.row_number"
"""Column with each row's index in its file, where rows of a batch do not follow each other there."""


def mark_bad_rows(batch: pa.RecordBatch, reasons: pa.Array) -> pa.RecordBatch:
    """Adds a column with the reasons why rows of a batch cannot be read.

    A source yields such a row at its position, with nulls for values that it could not read. The core stops there, or
    leaves the row out and counts it, depending on ``stream.on_bad_row``.

    Args:
        reasons: strings; null for a row that could be read.
    """
    return batch.append_column(BAD_ROW, reasons.cast(pa.string()))


@dataclass(frozen=True)
class Origin:
    """The file and the row at which a record batch begins.

    Attributes:
        file: the file, or another name that a user recognises.
        row: the index in the file of the batch's first row.
        next_us: a time before which no later batch of the window has an event, of a source that is not ``in_order``.
        keys_only: whether the batch has rows that no reader needs, and only some columns; see
            ``DataSource.select_rows``.
    """

    file: str
    row: int
    next_us: int | None = None
    keys_only: bool = False

    def mark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with this origin in its schema's metadata; no data is copied."""
        metadata = {"exfm.file": self.file, "exfm.row": str(self.row)}
        if self.next_us is not None:
            metadata["exfm.next_us"] = str(self.next_us)
        if self.keys_only:
            metadata["exfm.keys_only"] = "1"
        return batch.replace_schema_metadata(metadata)

    @classmethod
    def from_batch(cls, batch: pa.RecordBatch) -> Self:
        """Reads the origin in a batch's metadata; without metadata the file is called ``stream``."""
        metadata = batch.schema.metadata or {}
        next_us = metadata.get(b"exfm.next_us")
        return cls(
            metadata.get(b"exfm.file", b"stream").decode(),
            int(metadata.get(b"exfm.row", b"0")),
            None if next_us is None else int(next_us),
            b"exfm.keys_only" in metadata,
        )


def slice_rows(batches: Iterator[pa.RecordBatch], shard: Shard) -> Iterator[pa.RecordBatch]:
    """Cuts a window's batches to a shard: row i belongs to shard ``i % count``.

    Intended for sources that cannot shard at a lower cost. Rows keep their order and, with a single shard, their
    origin.
    """
    position = 0
    for batch in batches:
        kept = batch
        if shard.count > 1:
            # Index in this batch of the first row whose position in the window is shard.index modulo shard.count.
            first = (shard.index - position) % shard.count
            kept = batch.take(pa.array(np.arange(first, batch.num_rows, shard.count)))
        position += batch.num_rows
        if kept.num_rows:
            yield kept
