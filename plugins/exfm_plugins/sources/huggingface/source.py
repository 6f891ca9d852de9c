"""Streams a Hugging Face dataset.

Legend: N rows, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

import exfm
from exfm.sources import SchemaConfig, TimeUnit, check_time_type, column_times
from exfm_plugins.sources.huggingface.table import load, read_rows

_TIMES_AT_ONCE = 1 << 20  # 8 MiB of times, so that a long dataset is read in little memory
_WHOLE = exfm.sources.Shard()


class HuggingFace(exfm.DataSource):
    """Streams a table that the package ``datasets`` loads (huggingface.co/docs/datasets), by the experiment's schema.

    ``path`` is a folder that ``save_to_disk`` has written, a folder of Parquet, CSV or JSON files, or the name of a
    dataset of the Hub. Rows must be in the order of their time; ``sort`` sorts them. A row that goes back in time is
    yielded at its position, where the core reports it. A row without a time is yielded after its predecessor. Rows stay
    on the disk, memory-mapped by ``datasets``; 16 bytes of each are held in memory, 24 with ``sort``.

    Raises:
        ValueError: there is no such dataset, split or column, or the time is of another type.
    """

    name: ClassVar[str] = "huggingface"

    class Config(SchemaConfig):
        """Configures the dataset, and the schema of its rows."""

        path: str = Field(description="A folder on a disk or any fsspec URL, or a name on the Hub: owner/dataset.")
        subset: str = Field("", description="The configuration of a dataset that has several.")
        split: str = Field("train", description="The split that is the stream.")
        time_unit: TimeUnit = Field(
            "timestamp", description="timestamp: event_time is an Arrow timestamp; or what it counts since 1970, UTC."
        )
        sort: bool = Field(False, description="Whether rows are to be sorted by their time.")
        batch_rows: int = Field(8192, gt=0, description="The most rows that are read at once.")

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the configured schema."""
        return self.config.feature_schema()

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from the first to the last event."""
        if not self._reached.size:
            raise ValueError(f"huggingface: {self._label} has no rows")
        return exfm.sources.TimeRange(int(self._reached[0]), int(self._reached[-1]) + 1)

    def parts(self) -> Sequence[exfm.sources.StreamPart]:
        """Returns the dataset as a single part."""
        time = self.time_range()
        return [exfm.sources.StreamPart(self._label, str(self._table._fingerprint), time.start_us, time.end_us - 1)]

    def next_event_us(self, from_us: int) -> int | None:
        """Returns the first event at or after a time."""
        row = int(np.searchsorted(self._reached, from_us))
        return int(self._reached[row]) if row < self._reached.size else None

    def select(self, schema: exfm.schema.FeatureSchema) -> HuggingFace:
        """Returns the stream with fewer columns."""
        return HuggingFace(self.config.with_schema(schema))

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows with the schema's columns; row i of the window belongs to shard ``i % count``."""
        start, end = np.searchsorted(self._reached, [window.start_us, window.end_us])
        mine = range(int(start) + shard.index, int(end), shard.count)
        for first in range(0, len(mine), self.config.batch_rows):
            numbers = mine[first : first + self.config.batch_rows]
            yield exfm.sources.Origin(self._label, numbers[0]).mark(self._batch(numbers))

    @property
    def _label(self) -> str:
        return f"{self.config.path}, split {self.config.split!r}{' (sorted by time)' if self.config.sort else ''}"

    @cached_property
    def _table(self) -> Any:
        config = self.config
        table = load(config.path, config.subset, config.split, config.columns)
        kind = table.features.arrow_schema.field(config.event_time).type
        check_time_type(f"huggingface: {self._label}", config.event_time, kind, config.time_unit)
        return table

    @cached_property
    def _times(self) -> NDArray[np.int64]:
        """Returns every row's time in microseconds, in the dataset's order, (N,).

        A missing time is replaced by the time of the preceding row, and at the beginning by the first time.
        """
        table = self._table.select_columns([self.config.event_time])
        times, missing = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
        for first in range(0, len(table), _TIMES_AT_ONCE):
            column = read_rows(table, slice(first, first + _TIMES_AT_ONCE)).column(0)
            times.append(column_times(column, self.config.time_unit))
            missing.append(column.is_null().to_numpy(zero_copy_only=False))
        time_N, missing_N = np.concatenate(times), np.concatenate(missing)
        if missing_N.any():
            if missing_N.all():
                raise ValueError(f"huggingface: {self._label}: column {self.config.event_time!r} is empty")
            # Row whose time each row takes: the running maximum carries the last row with a time forward.
            source_N = np.maximum.accumulate(np.where(missing_N, int(missing_N.argmin()), np.arange(missing_N.size)))
            time_N = time_N[source_N]
        return time_N

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        # Stable, so that rows of equal times keep the dataset's order.
        return np.argsort(self._times, kind="stable")

    @cached_property
    def _reached(self) -> NDArray[np.int64]:
        """Returns the time that the stream has reached at each row, (N,), which never decreases."""
        time_N = self._times[self._order] if self.config.sort else self._times
        reached_N: NDArray[np.int64] = np.maximum.accumulate(time_N)
        return reached_N

    def _batch(self, numbers: range) -> pa.RecordBatch:
        if self.config.sort:
            batch = read_rows(self._table, self._order[numbers].tolist())
        elif numbers.step == 1:
            # A slice is read without copying row by row.
            batch = read_rows(self._table, slice(numbers[0], numbers[-1] + 1))
        else:
            batch = read_rows(self._table, list(numbers))
        index = batch.schema.get_field_index(self.config.event_time)
        column = batch.column(index)
        missing_B = column.is_null().to_numpy(zero_copy_only=False)
        time = pa.array(column_times(column, self.config.time_unit), mask=missing_B)
        return batch.set_column(index, self.config.event_time, time.view(pa.timestamp("us")))
