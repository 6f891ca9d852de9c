"""Parquet files as a stream: the row groups of a window, one after the other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm.sources import SchemaConfig, TimeUnit, column_times
from exfm_plugins.sources.parquet.files import ParquetFiles
from exfm_plugins.sources.parquet.order import PlacedGroup, StreamFile, placed

_WHOLE = exfm.sources.Shard()


class Parquet(exfm.DataSource):
    """Any time-ordered Parquet files, at any fsspec URL, with the schema given in the experiment file.

    Files follow each other in the order of their first event (where that is equal, of their names), and rows in a file
    in the order of their time. A window reads the row groups whose statistics overlap it, one at a time, and the
    schema's columns only: memory is bounded by the largest row group. A row that goes back in time, or has none,
    belongs to the window that the stream has reached where it stands: it is yielded there, so that the core finds it
    and names its file and row. So it does with the rows of a file that lacks a column or has it with a type that cannot
    be.

    Columns may also stand in the path, as in ``dt=2024-03-01/hour=3``: integers where every value is one, or strings.

    ``time_range`` and ``parts`` look at the files; what is read between two looks is of the files as they were.

    Raises:
        ValueError: there are no files, a file is no Parquet or has no time, or a column is in none of the files. An
            ``exfm.components.NotYetError`` where there are no files or no rows yet, or a file is still being written.
    """

    name: ClassVar[str] = "parquet"
    free_fields: ClassVar[frozenset[str]] = frozenset({"path", "batch_rows"})

    class Config(SchemaConfig):
        """Where the files are, and what a row of them holds."""

        path: str = Field(description="Folder (with its sub-folders), file or glob; any fsspec URL.")
        time_unit: TimeUnit = Field(
            "timestamp", description="timestamp: event_time is an Arrow timestamp; or what it counts since 1970, UTC."
        )
        batch_rows: int = Field(8192, gt=0, description="The most rows that are decoded at once.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._placed: tuple[tuple[StreamFile, ...], list[PlacedGroup]] | None = None
        self._column: tuple[PlacedGroup, NDArray[np.int64]] | None = None  # the one that was read last

    def schema(self) -> exfm.schema.FeatureSchema:
        """The schema as it is given."""
        return self.config.feature_schema()

    def time_range(self) -> exfm.sources.TimeRange:
        """From the first to the last event, by the files' statistics."""
        files = self._files.look()
        if not files:
            raise exfm.components.NotYetError(f"parquet: path: the files at {self.config.path!r} have no rows")
        return exfm.sources.TimeRange(files[0].first_us, max(file.last_us for file in files) + 1)

    def parts(self) -> Sequence[exfm.sources.StreamPart]:
        """The files that have rows."""
        files = self._files.look()
        return [exfm.sources.StreamPart(file.path, file.version, file.first_us, file.last_us) for file in files]

    def next_event_us(self, from_us: int) -> int | None:
        """The first event at or after a time, by the row groups' statistics; of one that straddles it, by its rows."""
        groups = self._groups
        number = bisect_left(groups, from_us, key=lambda group: group.last_us)
        if number == len(groups):
            return None
        group = groups[number]
        if group.first_us >= from_us:
            return group.first_us
        reached_R = self._reached(group)
        return int(reached_R[np.searchsorted(reached_R, from_us)])

    def select(self, schema: exfm.schema.FeatureSchema) -> Parquet:
        """The same stream with fewer columns."""
        return Parquet(self.config.with_schema(schema))

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows with the schema's columns; ``event_time`` in microseconds whatever the file has."""
        return exfm.sources.slice_rows(self._window(window), shard)

    @cached_property
    def _files(self) -> ParquetFiles:
        config = self.config
        return ParquetFiles(config.path, config.columns, config.event_time, config.time_unit)

    @property
    def _groups(self) -> list[PlacedGroup]:
        """The row groups of the files as they were at the last look, in order."""
        files = self._files.known()
        if self._placed is None or self._placed[0] is not files:
            self._placed = files, list(placed(files))
        return self._placed[1]

    def _reached(self, group: PlacedGroup) -> NDArray[np.int64]:
        """The time that the stream has got to at each row of a row group, which is read for it."""
        if self._column is None or self._column[0] != group:
            column = [self.config.event_time]
            with self._files.open(group.file.path) as file:
                times = [batch.column(0) for batch in file.iter_batches(row_groups=[group.index], columns=column)]
            reached_R = self._times(pa.chunked_array(times).combine_chunks(), group.first_us)[1]
            self._column = group, reached_R
        return self._column[1]

    def _window(self, window: exfm.sources.Window) -> Iterator[pa.RecordBatch]:
        groups = self._groups
        first = bisect_left(groups, window.start_us, key=lambda group: group.last_us)
        end = bisect_left(groups, window.end_us, lo=first, key=lambda group: group.first_us)
        for path, of_file in groupby(groups[first:end], key=lambda group: group.file.path):
            with self._files.open(path) as file:
                for group in of_file:
                    yield from self._group(file, group, window)

    def _group(self, file: pq.ParquetFile, group: PlacedGroup, window: exfm.sources.Window) -> Iterator[pa.RecordBatch]:
        """The rows of a row group that lie in the window."""
        row, reached = group.first_row, group.first_us
        of_path = self._files.of_path(group.file.path)
        batches = file.iter_batches(self.config.batch_rows, row_groups=[group.index], columns=list(self.config.columns))
        for batch in batches:
            place = batch.schema.get_field_index(self.config.event_time)
            event_time, reached_B = self._times(batch.column(place), reached)
            batch = batch.set_column(place, self.config.event_time, event_time)
            for name, value in of_path.items():
                if name not in batch.schema.names:
                    batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
            for first, end in _runs((reached_B >= window.start_us) & (reached_B < window.end_us)):
                yield exfm.sources.Origin(group.file.path, row + first, group.overlaps).mark(
                    batch.slice(first, end - first)
                )
            row, reached = row + batch.num_rows, int(reached_B[-1])

    def _times(self, column: pa.Array, reached: int) -> tuple[pa.Array, NDArray[np.int64]]:
        """The times of rows in microseconds, and what the stream has got to at each after it had got to ``reached``."""
        missing_B = column.is_null().to_numpy(zero_copy_only=False)
        time_B = column_times(column, self.config.time_unit)
        reached_B = np.maximum.accumulate(np.maximum(np.where(missing_B, reached, time_B), reached))
        return pa.array(time_B, mask=missing_B).view(pa.timestamp("us")), reached_B


def _runs(inside_B: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and end of every run of consecutive rows that are inside."""
    edges = np.flatnonzero(np.diff(inside_B, prepend=False, append=False))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
