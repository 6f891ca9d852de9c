"""Streams Parquet files, reading a row group at a time."""

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
    """Streams any time-ordered Parquet files, at any fsspec URL, with the schema of the experiment file.

    Files are in the order of their first event, or of their names if it is equal, and the rows of a file in the order
    of their time. A window reads the row groups whose statistics overlap it, in order, and only the schema's columns,
    so that memory is bounded by the largest row group. A row that goes back in time or has no time belongs to the
    window that the stream has reached at its position. It is yielded there, so that the core reports it with its file
    and row. The core also reports the rows of a file that lacks a column, or whose column has a wrong type.

    Columns may also be in the path, as in ``dt=2024-03-01/hour=3``: integers if all values are, or strings.

    ``time_range`` and ``parts`` list the files; between two listings, reads use the files of the last listing.

    Raises:
        ValueError: there are no files, a file is no Parquet or has no time, or a column is in none of the files. An
            ``exfm.components.NotYetError`` if there are no files or no rows yet, or a file is still being written.
    """

    name: ClassVar[str] = "parquet"
    free_fields: ClassVar[frozenset[str]] = frozenset({"path", "batch_rows"})

    class Config(SchemaConfig):
        """Configures the location of the files, and the schema of their rows."""

        path: str = Field(description="Folder (with its sub-folders), file or glob; any fsspec URL.")
        time_unit: TimeUnit = Field(
            "timestamp", description="timestamp: event_time is an Arrow timestamp; or what it counts since 1970, UTC."
        )
        batch_rows: int = Field(8192, gt=0, description="The most rows that are decoded at once.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._placed: tuple[tuple[StreamFile, ...], list[PlacedGroup]] | None = None
        # Cache of the row group whose times were read last: windows ask for the same group repeatedly.
        self._column: tuple[PlacedGroup, NDArray[np.int64]] | None = None

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the configured schema."""
        return self.config.feature_schema()

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last event, by the files' statistics."""
        files = self._files.look()
        if not files:
            raise exfm.components.NotYetError(f"parquet: path: the files at {self.config.path!r} have no rows")
        return exfm.sources.TimeRange(files[0].first_us, max(file.last_us for file in files) + 1)

    def parts(self) -> Sequence[exfm.sources.StreamPart]:
        """Returns the files that have rows."""
        files = self._files.look()
        return [exfm.sources.StreamPart(file.path, file.version, file.first_us, file.last_us) for file in files]

    def next_event_us(self, from_us: int) -> int | None:
        """Returns the first event at or after a time, by the row groups' statistics.

        Only a row group that contains the time is read.
        """
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
        """Returns the stream with fewer columns."""
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
        """Returns the row groups of the files as of the last look, in order."""
        files = self._files.last_seen()
        # Computed again only after a look, which returns another tuple.
        if self._placed is None or self._placed[0] is not files:
            self._placed = files, list(placed(files))
        return self._placed[1]

    def _reached(self, group: PlacedGroup) -> NDArray[np.int64]:
        """Reads the times of a row group, and returns the time that the stream has reached at each row."""
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
        # A file is opened once for its row groups in the window, because opening reads the footer.
        for path, file_groups in groupby(groups[first:end], key=lambda group: group.file.path):
            with self._files.open(path) as file:
                for group in file_groups:
                    yield from self._group(file, group, window)

    def _group(self, file: pq.ParquetFile, group: PlacedGroup, window: exfm.sources.Window) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a row group that belong to the window."""
        row, reached = group.first_row, group.first_us
        partition_columns = self._files.partition_columns(group.file.path)
        batches = file.iter_batches(self.config.batch_rows, row_groups=[group.index], columns=list(self.config.columns))
        for batch in batches:
            index = batch.schema.get_field_index(self.config.event_time)
            event_time, reached_B = self._times(batch.column(index), reached)
            batch = batch.set_column(index, self.config.event_time, event_time)
            for name, value in partition_columns.items():
                if name not in batch.schema.names:  # a column in the file has precedence
                    batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
            for first, end in _runs((reached_B >= window.start_us) & (reached_B < window.end_us)):
                yield exfm.sources.Origin(group.file.path, row + first, group.overlaps).mark(
                    batch.slice(first, end - first)
                )
            row, reached = row + batch.num_rows, int(reached_B[-1])

    def _times(self, column: pa.Array, reached: int) -> tuple[pa.Array, NDArray[np.int64]]:
        """Returns the times of rows in microseconds, and the time that the stream has reached at each row.

        Args:
            column: times of consecutive rows.
            reached: time that the stream has reached before them.
        """
        missing_B = column.is_null().to_numpy(zero_copy_only=False)
        time_B = column_times(column, self.config.time_unit)
        reached_B = np.maximum.accumulate(np.maximum(np.where(missing_B, reached, time_B), reached))
        return pa.array(time_B, mask=missing_B).view(pa.timestamp("us")), reached_B


def _runs(inside_B: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Returns start and end of every run of consecutive rows that are inside."""
    edges = np.flatnonzero(np.diff(inside_B, prepend=False, append=False))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
