"""DataSource: a time-ordered stream of examples as Arrow record batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar, Self

import pyarrow as pa

from exfm.interfaces.component import Component, ComponentConfig
from exfm.interfaces.schema import FeatureSchema


def utc(time_us: int) -> str:
    """Writes a time in microseconds since 1970 as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Window:
    """One slice of the stream: events with ``start_us <= time < end_us`` (microseconds since 1970, UTC)."""

    index: int
    start_us: int
    end_us: int

    def __str__(self) -> str:
        return utc(self.start_us)


@dataclass(frozen=True)
class Shard:
    """One of ``count`` disjoint parts of a window's rows, which together are all of them: row i's is ``i % count``."""

    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class TimeRange:
    """The part of the stream that is complete: ``start_us <= time < end_us``. It may grow between two calls."""

    start_us: int
    end_us: int


@dataclass(frozen=True)
class StreamPart:
    """A unit of the stream that appears, changes and goes as a whole, such as a file.

    Attributes:
        name: the name that ``Origin.file`` gives its rows.
        version: differs whenever the content may differ: size and time of change, or a store's tag.
        first_us, last_us: its rows lie between these times, both included, in microseconds since 1970, UTC.
    """

    name: str
    version: str
    first_us: int
    last_us: int


class DataSource(Component, ABC):
    """A time-ordered stream.

    A source neither cuts windows nor hashes ids nor checks values: the core does, the same for all sources. It says
    what a row holds, which time it covers, and yields the rows of a slice of time, in order, at constant memory.
    Reading the same window twice gives the same rows in the same order. A batch marked with its ``Origin`` lets
    error messages name the file and the row.

    Raises (from every method):
        ValueError: the user's input is wrong: a path that does not exist, a column that a file lacks. An
            ``exfm.components.NotYetError`` where asking again may help: a folder that is still empty, a file that
            is still being written.
    """

    kind: ClassVar[str] = "data_source"
    free_fields: ClassVar[frozenset[str]] = frozenset()
    """Config fields that say where the stream lies or how it is read, not which rows it has: they may change when a run
    goes on, such as a path whose folder has moved."""

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @abstractmethod
    def schema(self) -> FeatureSchema:
        """What a row holds. Must not read the stream's rows."""

    @abstractmethod
    def time_range(self) -> TimeRange:
        """The time for which the stream is complete."""

    @abstractmethod
    def read(self, window: Window, shard: Shard = Shard()) -> Iterator[pa.RecordBatch]:
        """Yields a shard's rows of a window in time order."""

    def parts(self) -> Sequence[StreamPart]:
        """Lists the units that the stream consists of now, so that a later call can tell growth from change.

        A window's commit records the units that overlap it. Where one of them has another version later, or a new one
        overlaps a committed window, rows that came late are counted. The default, none, is for a stream that never
        changes behind its newest row.
        """
        return ()

    def next_event_us(self, from_us: int) -> int | None:
        """Finds the first event at or after a time, so that stretches without events cost nothing.

        Returns:
            Its time in microseconds, or any earlier one that is not before ``from_us``; None where there is none. The
            default says nothing: ``from_us``.
        """
        return from_us

    def select(self, schema: FeatureSchema) -> DataSource:
        """The same stream for a reader who needs the columns of a schema, a part of this source's, and no others.

        Other columns may then be absent. The default, the source itself, is for a stream that always has all of them.
        """
        return self


BAD_ROW = "exfm.bad_row"


def mark_bad_rows(batch: pa.RecordBatch, reasons: pa.Array) -> pa.RecordBatch:
    """Says of a batch's rows why they cannot be read.

    A source yields such a row where it stands, with nulls for what is not known. The core stops there, or leaves it out
    and counts it, as ``stream.on_bad_row`` says.

    Args:
        reasons: strings; null for a row that could be read.
    """
    return batch.append_column(BAD_ROW, reasons.cast(pa.string()))


@dataclass(frozen=True)
class Origin:
    """Where a record batch was read.

    Attributes:
        file: the file, or another name that a user recognises.
        row: its first row there.
        overlaps: another file, read before, whose times this file's overlap: why time may go backwards here.
    """

    file: str
    row: int
    overlaps: str = ""

    def mark(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch, carrying this origin in its schema's metadata (no data is copied)."""
        metadata = {"exfm.file": self.file, "exfm.row": str(self.row), "exfm.overlaps": self.overlaps}
        return batch.replace_schema_metadata({key: value for key, value in metadata.items() if value})

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Self:
        """The origin a batch carries; an unnamed one where its source gave none."""
        metadata = batch.schema.metadata or {}
        return cls(
            metadata.get(b"exfm.file", b"stream").decode(),
            int(metadata.get(b"exfm.row", b"0")),
            metadata.get(b"exfm.overlaps", b"").decode(),
        )


def slice_rows(batches: Iterator[pa.RecordBatch], shard: Shard) -> Iterator[pa.RecordBatch]:
    """Cuts a window's batches to a shard: row i belongs to shard ``i % count``.

    For sources that have no cheaper way to shard. Rows keep their order and, with a single shard, their origin.
    """
    position = 0
    for batch in batches:
        kept = batch
        if shard.count > 1:
            first = (shard.index - position) % shard.count
            kept = batch.take(pa.array(range(first, batch.num_rows, shard.count), pa.int64()))
        position += batch.num_rows
        if kept.num_rows:
            yield kept
