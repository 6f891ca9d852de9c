"""Streams the entries of a Redis stream; a window can be read when it is complete.

Legend: R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import AwareDatetime, Field

import exfm
from exfm.sources import SchemaConfig, to_microseconds, value_types
from exfm_plugins.sources.redis_stream.entries import Entries, Entry, Extent
from exfm_plugins.sources.redis_stream.rows import PlacedRows, parse

_WHOLE = exfm.sources.Shard()
_US_PER_MS = 1000
_1970 = datetime(1970, 1, 1, tzinfo=UTC)


class RedisStream(exfm.DataSource):
    """Streams an unbounded log of events: a Redis stream (redis.io/docs/latest/develop/data-types/streams).

    The field ``field`` of an entry holds a row, a JSON object with the schema's columns. A column that it lacks is
    null. Ids are integers, except in the columns that ``strings`` names.

    Entries are in the order in which they were appended, at the time in their id; their events may be older. With
    ``lateness`` 0 the time of a row is the time of its entry. Otherwise the time is in the row, differs from that of
    the entry by at most ``lateness``, and determines the order of rows. An event that arrives later than that is
    yielded at the time that the stream has reached, where the core reports that time goes backwards. An entry without
    a row, or with an event too far ahead, is a bad row at the time of the entry.

    The stream is complete up to its watermark: the time of the newest entry, less ``lateness``. ``--follow`` waits for
    it. A window's rows are the same at every read while the broker keeps them. Entries that the broker has trimmed
    raise an error; windows keep their numbers if ``start`` is set. Memory holds the entries of twice the lateness.

    Raises:
        ValueError: there is no broker or no such stream, or entries of a window are gone.
    """

    name: ClassVar[str] = "redis_stream"

    class Config(SchemaConfig):
        """Configures the stream, and the schema of its entries."""

        url: str = Field(description="The broker, such as redis://host:6379/0.")
        stream: str = Field(description="The key of the stream.")
        field: str = Field("row", description="The field of an entry that holds its row, a JSON object.")
        strings: tuple[str, ...] = Field((), description="Columns whose ids are strings; others are whole numbers.")
        lateness: exfm.sources.Duration = Field(
            timedelta(0),
            description="The most that an event's time differs from the entry's; 0 takes the time of the entry.",
        )
        time_unit: Literal["s", "ms", "us", "ns"] = Field(
            "ms", description="What event_time counts since 1970, UTC; not used where lateness is 0."
        )
        start: AwareDatetime | None = Field(
            None, description="Where the first window begins; needed where the broker trims the stream."
        )
        batch_rows: int = Field(4096, gt=0, description="How many entries are asked for at once.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        # Rounded up to the milliseconds of entry ids, so that no event within the lateness is late.
        self._lateness_ms = -(-config.lateness // timedelta(milliseconds=1))

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the configured schema, after checking ``strings``."""
        schema = self.config.feature_schema()
        value_types(schema, self.config.strings, self.name)
        return schema

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from ``start``, or the first entry, to the watermark."""
        extent = self._entries.extent()
        start_us = self._start_us(extent)
        newest_ms = 0 if extent is None else extent.newest_ms - self._lateness_ms
        return exfm.sources.TimeRange(start_us, max(newest_ms * _US_PER_MS, start_us))

    def next_event_us(self, from_us: int) -> int | None:
        """Returns a lower bound of the first event at or after a time, from the first entry that may hold it."""
        entry_ms = self._entries.next_ms(-(-from_us // _US_PER_MS) - self._lateness_ms)
        if entry_ms is None:
            return None
        return max(from_us, (entry_ms - self._lateness_ms) * _US_PER_MS)

    def select(self, schema: exfm.schema.FeatureSchema) -> RedisStream:
        """Returns the stream with fewer columns."""
        strings = tuple(column for column in self.config.strings if column in schema.columns)
        return RedisStream(self.config.with_schema(schema).model_copy(update={"strings": strings}))

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows in order of their time; row i of the window belongs to shard ``i % count``."""
        return exfm.sources.slice_rows(self._window(window), shard)

    @cached_property
    def _entries(self) -> Entries:
        config = self.config
        return Entries(config.url, config.stream, config.field, config.batch_rows)

    @cached_property
    def _types(self) -> pa.Schema:
        return value_types(self.config.feature_schema(), self.config.strings, self.name)

    def _start_us(self, extent: Extent | None) -> int:
        if self.config.start is not None:
            return exfm.sources.microseconds(self.config.start - _1970)
        if extent is None:
            raise exfm.components.NotYetError(
                f"redis_stream: stream: {self.config.stream!r} holds no entry yet; set start to wait for the first"
            )
        if extent.trimmed:
            raise ValueError(
                f"redis_stream: {self.config.stream!r} has lost its oldest entries; set start, the time from which "
                "windows are counted, and keep it"
            )
        return (extent.first_ms - self._lateness_ms) * _US_PER_MS

    def _window(self, window: exfm.sources.Window) -> Iterator[pa.RecordBatch]:
        """Yields the window's rows in the order of their times.

        Rows are held back while a later entry may still precede them.
        """
        self._check_kept(window)
        first_ms = -(-window.start_us // _US_PER_MS) - self._lateness_ms
        end_ms = -(-window.end_us // _US_PER_MS) + self._lateness_ms
        pending: PlacedRows | None = None
        for page in self._entries.between(first_ms, end_ms):
            new = self._rows(page)
            new = new.take((new.time_R >= window.start_us) & (new.time_R < window.end_us))
            pending = new if pending is None else pending.join(new)
            # Events of later entries are not before this time.
            complete_us = (page[-1].appended_ms - self._lateness_ms) * _US_PER_MS
            yield from self._batches(pending.take(pending.time_R < complete_us))
            pending = pending.take(pending.time_R >= complete_us)
        if pending is not None:
            yield from self._batches(pending)

    def _batches(self, placed: PlacedRows) -> Iterator[pa.RecordBatch]:
        """Yields the rows in batches that begin at each bad row, because an origin names the first entry of a batch."""
        bad = np.flatnonzero(placed.rows.column(placed.rows.num_columns - 1).is_valid())
        for first, end in pairwise(np.unique([0, *bad, placed.id_R.size]).tolist()):
            origin = exfm.sources.Origin(f"{self.config.stream} from entry {placed.id_R[first]}", 0)
            yield origin.mark(placed.rows.slice(first, end - first))

    def _rows(self, page: list[Entry]) -> PlacedRows:
        """Parses the rows of a page, and sorts them by time."""
        rows, reasons = parse(page, self._types, self.config.field)
        ids_R = np.array([entry.id for entry in page])
        appended_R = np.array([entry.appended_ms for entry in page], np.int64) * _US_PER_MS
        column = rows.schema.get_field_index(self.config.event_time)
        if not self._lateness_ms:
            # The times of entries, which ascend: nothing to sort.
            rows = exfm.sources.mark_bad_rows(
                _with_time(rows, column, pa.array(appended_R)), pa.array(reasons, pa.string())
            )
            return PlacedRows(rows, appended_R, ids_R)
        event_time = rows.column(column)
        missing_R = event_time.is_null().to_numpy(zero_copy_only=False)
        time_R = to_microseconds(event_time.fill_null(0).to_numpy(), self.config.time_unit)
        lateness_us = self._lateness_ms * _US_PER_MS
        ahead_R = ~missing_R & (time_R > appended_R + lateness_us)
        for number in np.flatnonzero(ahead_R).tolist():
            reasons[number] = self._ahead
        # A late event is moved to the earliest time that its entry may have.
        stream_R = np.where(missing_R | ahead_R, appended_R, np.maximum(time_R, appended_R - lateness_us))
        order = np.argsort(stream_R, kind="stable")
        rows = _with_time(rows, column, pa.array(time_R, mask=missing_R))
        rows = exfm.sources.mark_bad_rows(rows, pa.array(reasons, pa.string()))
        return PlacedRows(rows, stream_R, ids_R).take(order)

    @property
    def _ahead(self) -> str:
        """Describes the mistake in a row whose time is too far after the time of its entry."""
        config = self.config
        return (
            f"{config.event_time} lies after the time of the entry by more than lateness allows; is time_unit "
            f"{config.time_unit} right?"
        )

    def _check_kept(self, window: exfm.sources.Window) -> None:
        extent = self._entries.extent()
        if extent and extent.trimmed and window.start_us < (extent.first_ms + self._lateness_ms) * _US_PER_MS:
            raise ValueError(
                f"redis_stream: {self.config.stream!r} has lost entries of the window {window}: its oldest is of "
                f"{exfm.sources.Window(0, extent.first_ms * _US_PER_MS, 0)}"
            )


def _with_time(rows: pa.RecordBatch, index: int, time: pa.Array) -> pa.RecordBatch:
    return rows.set_column(index, rows.schema.names[index], time.view(pa.timestamp("us")))
