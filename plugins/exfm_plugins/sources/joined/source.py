"""Streams impressions with their labels, features and histories, joined from other logs.

Legend: A rows of a slab, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar, Self

import pyarrow as pa

from exfm.components import suggestion
from exfm.sources import (
    ROW_NUMBER,
    NeededRows,
    Origin,
    RowGroupSource,
    Shard,
    StreamPart,
    TimeRange,
    Window,
    slice_rows,
)
from exfm_plugins.sources.joined.completeness import Completeness, LogTimes
from exfm_plugins.sources.joined.config import JoinedConfig
from exfm_plugins.sources.joined.events import EventLog
from exfm_plugins.sources.joined.joins import Joins, Slab
from exfm_plugins.sources.joined.plain import check_key, to_plain
from exfm_plugins.sources.joined.queries import Database, open_engine
from exfm_plugins.sources.parquet.files import ParquetFiles

_WHOLE = Shard()
_SLAB_BATCHES = 8
"""Batches that are joined at once: each join reads all events of their time."""


class Joined(RowGroupSource):
    """Streams a log of impressions, and joins labels, features and histories to it from logs of events.

    All logs are Parquet files, at any fsspec URL, whose rows may be in any order; equal rows in other files or row
    groups give equal results, bit for bit.

    - ``labels_from``: a label is 1 if an event of equal keys follows the impression, at its time or later, at most
      ``within`` after it. An event counts for the last impression at or before it (``credit: every`` counts it for all
      within the window); of impressions of equal key and time, for each. A label is null until its log and, where
      impressions compete, the impressions are complete to the end of the window, and where a key is null.
    - ``as_of``: the columns of the newest row of equal keys strictly before the impression; null without such a row.
    - ``histories``: lists of the newest events of equal keys strictly before the impression, oldest first.

    Rows and events of equal key and time are in the order of their columns, as the join lists them.

    The stream ends where the logs of histories do, and early enough that a label is known when it is due: a log is
    complete before its newest event, less its ``lateness``, or before ``complete_until``. Logs of ``as_of`` are not
    waited for, because their rows are seldom new. A join whose columns no model of a job reads is not computed.

    Memory holds the events of a window and of ``keep`` before it, of the columns of the joins.

    Raises:
        ValueError: as of ``parquet``, for each log; or keys have different types.
    """

    name: ClassVar[str] = "joined"
    free_fields: ClassVar[frozenset[str]] = RowGroupSource.free_fields | frozenset(
        {"path", "logs", "complete_until", "threads", "memory_mb"}
    )

    class Config(JoinedConfig):
        """Configures the impressions, the logs, and the joins."""

    config: Config

    @property
    def location(self) -> str:
        """Returns the path of the impressions, for messages."""
        return f"path {self.config.path!r}"

    def select_rows(self, readers: Sequence[NeededRows]) -> Self:
        """Returns the stream itself, because joins need the keys of all rows, and statistics know no joined column."""
        return self

    def open_files(self) -> ParquetFiles:
        """Returns the files of the impressions; nothing is read."""
        config = self.config
        return ParquetFiles(config.path, config.columns, config.example_id, config.event_time, config.time_unit)

    def time_range(self) -> TimeRange:
        """Returns the range of the impressions that are complete."""
        span = super().time_range()
        self._times.look()
        self._complete = self._times.completeness(span.end_us)
        return TimeRange(span.start_us, max(span.start_us, self._complete.end_us))

    def parts(self) -> Sequence[StreamPart]:
        """Returns the files of the impressions; their versions include those of their labels."""
        files = super().parts()
        if not files:
            return files
        self._times.look()
        complete = self._complete = self._times.completeness(max(file.last_us for file in files) + 1)
        return [replace(file, version=self._times.version(file, complete)) for file in files]

    def read(self, window: Window, shard: Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields the complete impressions of a window with the schema's columns."""
        return slice_rows(self._joined(window), shard)

    @cached_property
    def _logs(self) -> dict[str, EventLog]:
        columns: dict[str, dict[str, None]] = {name: {} for name in self.config.logs}
        for join in self.config.active_joins().values():
            columns[join.log] |= dict.fromkeys([*join.key.values(), *join.values])
        logs: dict[str, EventLog] = {}
        for name, log in self.config.logs.items():
            logs[name] = EventLog(f"logs.{name}", log.path, log.time, log.time_unit, list(columns[name]))
        return logs

    @cached_property
    def _impressions(self) -> EventLog:
        """Returns the impressions as a log, because labels depend on later impressions, too."""
        config = self.config
        keys: dict[str, None] = {}
        for join in config.labels_from.values():
            keys |= dict.fromkeys(join.key)
        return EventLog("path", config.path, config.event_time, config.time_unit, list(keys))

    @cached_property
    def _joins(self) -> Joins:
        return Joins(self.config, self._logs, self._impressions)

    @cached_property
    def _times(self) -> LogTimes:
        return LogTimes(self.config, self._logs, self._impressions)

    @cached_property
    def _complete(self) -> Completeness:
        """Returns the completeness as of the last look; the first look if there was none."""
        newest_us = max((file.last_us for file in self._files.last_seen()), default=0)
        return self._times.completeness(newest_us + 1)

    def _joined(self, window: Window) -> Iterator[pa.RecordBatch]:
        """Yields the impressions of a window with the columns of all joins."""
        complete = self._complete
        inside = replace(window, end_us=min(window.end_us, complete.end_us))
        # A cursor for each reading, because readings go on beside each other.
        with open_engine(self.config.threads, self.config.memory_mb).cursor() as cursor:
            database = Database(cursor)
            for batches in _slabs(super().read(inside), _SLAB_BATCHES * self.config.batch_rows):
                keys = {column: _key(batches, column) for column in self._joins.keys}
                time = _concatenated([batch.column(self.config.event_time).cast(pa.int64()) for batch in batches])
                added = dict(self._joins.columns(database, Slab(time, keys), complete))
                yield from self._with_columns(batches, added)

    def _with_columns(
        self, batches: Sequence[pa.RecordBatch], added: Mapping[str, pa.Array]
    ) -> Iterator[pa.RecordBatch]:
        """Yields batches with the schema's columns, some of which are added."""
        columns = self.config.feature_schema().columns
        start = 0
        for batch in batches:
            names = [name for name in batch.schema.names if name == ROW_NUMBER or name in columns]
            arrays = [batch.column(name) for name in names]
            for name, values in added.items():
                if name in columns:
                    names.append(name)
                    arrays.append(values.slice(start, batch.num_rows))
            start += batch.num_rows
            yield pa.record_batch(arrays, names=names).replace_schema_metadata(batch.schema.metadata)


def _slabs(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[list[pa.RecordBatch]]:
    """Groups consecutive batches, with at least so many rows in each group but the last."""
    slab: list[pa.RecordBatch] = []
    for batch in batches:
        slab.append(batch)
        if sum(batch.num_rows for batch in slab) >= rows:
            yield slab
            slab = []
    if slab:
        yield slab


def _key(batches: Sequence[pa.RecordBatch], column: str) -> pa.Array:
    """Returns a column of the impressions that is joined on.

    Raises:
        ValueError: a file lacks the column, or its type is not that of a key.
    """
    arrays: list[pa.Array] = []
    for batch in batches:
        location = f"joined: {Origin.from_batch(batch).file}"
        if column not in batch.schema.names:
            raise ValueError(f"{location} has no column {column!r}.{suggestion(column, batch.schema.names)}")
        values = to_plain(batch.column(column), f"{location}: column {column!r}")
        check_key(values, f"{location}: column {column!r}")
        arrays.append(values)
    return _concatenated(arrays)


def _concatenated(arrays: Sequence[pa.Array]) -> pa.Array:
    """Concatenates arrays of equal types, or of nulls alone."""
    tables = [pa.table({"values": array}) for array in arrays]
    return pa.concat_tables(tables, promote_options="default").column(0).combine_chunks()
