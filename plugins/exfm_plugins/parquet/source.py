"""Parquet files as a stream: the row groups of a window, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm.sources import SchemaConfig, TimeUnit, column_times
from exfm_plugins.parquet.files import ParquetFiles, RowGroup

_WHOLE = exfm.Shard()
_LONG_AGO = -(2**63)


class Parquet(exfm.DataSource):
    """Any time-ordered Parquet files, at any fsspec URL, with the schema given in the experiment file.

    Files follow each other in the order of their names, and rows in a file in the order of their time. A window reads
    the row groups whose statistics overlap it, one at a time, and the schema's columns only: memory is bounded by the
    largest row group. A row that goes back in time, or has none, belongs to the window that the stream has reached
    where it stands: it is yielded there, so that the core finds it and names its file and row. So it does with the rows
    of a file that lacks a column or has it with a type that cannot be.

    Raises:
        ValueError: there are no files, a file is no Parquet or has no time, or a column is in none of the files.
    """

    name: ClassVar[str] = "parquet"

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

    def schema(self) -> exfm.FeatureSchema:
        """The schema as it is given."""
        return self.config.feature_schema()

    def time_range(self) -> exfm.TimeRange:
        """From the first to the last event, by the files' statistics."""
        groups = [group for of_file in self._files.row_groups().values() for group in of_file]
        if not groups:
            raise ValueError(f"parquet: path: the files at {self.config.path!r} have no rows")
        return exfm.TimeRange(groups[0].first_us, max(group.last_us for group in groups) + 1)

    def read(self, window: exfm.Window, shard: exfm.Shard = _WHOLE, start_row: int = 0) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows with the schema's columns; ``event_time`` in microseconds whatever the file has."""
        return exfm.slice_rows(self._window(window), shard, start_row)

    @cached_property
    def _files(self) -> ParquetFiles:
        config = self.config
        return ParquetFiles(config.path, config.columns, config.event_time, config.time_unit)

    def _window(self, window: exfm.Window) -> Iterator[pa.RecordBatch]:
        newest = _LONG_AGO
        for path, groups in self._files.row_groups().items():
            overlapping = []
            for group in groups:
                if max(newest, group.first_us) < window.end_us and max(newest, group.last_us) >= window.start_us:
                    overlapping.append((group, max(newest, group.first_us)))
                newest = max(newest, group.last_us)
            if overlapping:
                with self._files.open(path) as file:
                    for group, reached in overlapping:
                        yield from self._group(path, file, group, reached, window)

    def _group(
        self, path: str, file: pq.ParquetFile, group: RowGroup, reached: int, window: exfm.Window
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a row group that lie in the window, where the stream has reached a time before it."""
        row = group.first_row
        batches = file.iter_batches(self.config.batch_rows, row_groups=[group.index], columns=list(self.config.columns))
        for batch in batches:
            place = batch.schema.get_field_index(self.config.event_time)
            missing_B = batch.column(place).is_null().to_numpy(zero_copy_only=False)
            time_B = column_times(batch.column(place), self.config.time_unit)
            reached_B = np.maximum.accumulate(np.maximum(np.where(missing_B, reached, time_B), reached))
            event_time = pa.array(time_B, mask=missing_B).view(pa.timestamp("us"))
            batch = batch.set_column(place, self.config.event_time, event_time)
            for first, end in _runs((reached_B >= window.start_us) & (reached_B < window.end_us)):
                yield exfm.Origin(path, row + first).mark(batch.slice(first, end - first))
            row, reached = row + batch.num_rows, int(reached_B[-1])


def _runs(inside_B: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """First and end of every run of consecutive rows that are inside."""
    edges = np.flatnonzero(np.diff(inside_B, prepend=False, append=False))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
