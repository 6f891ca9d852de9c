"""Event times: whatever a file stores, in microseconds since 1970."""

from __future__ import annotations

import json
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

TimeUnit = Literal["timestamp", "s", "ms", "us", "ns"]

# The last microsecond that a calendar can name; what lies past it was read with the wrong unit.
YEAR_9999_US = 253_402_300_799_999_999
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_LOGICAL_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}


def to_microseconds(value: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
    """Converts times between units; nanoseconds are rounded down."""
    per_second = _PER_SECOND[unit]
    return value * (1_000_000 // per_second) if per_second <= 1_000_000 else value // (per_second // 1_000_000)


def column_times(column: pa.Array, unit: TimeUnit) -> NDArray[np.int64]:
    """The times of a column of timestamps, or of integers that count ``unit``; a missing one is 0."""
    stored = column.type.unit if pa.types.is_timestamp(column.type) else unit
    return to_microseconds(column.cast(pa.int64()).fill_null(0).to_numpy(), stored)


def group_bounds(file: pq.ParquetFile, group: int, column: str, unit: TimeUnit) -> tuple[int, int] | None:
    """First and last time in a row group, from its statistics where it has them; None where it has no times at all."""
    metadata = file.metadata
    index = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
    statistics = metadata.row_group(group).column(index).statistics
    if statistics is not None and statistics.has_min_max:
        # The Arrow type's unit may differ from the stored one: seconds are stored as milliseconds.
        logical = json.loads(metadata.schema.column(index).logical_type.to_json())
        stored = _LOGICAL_UNITS[logical["timeUnit"]] if "timeUnit" in logical else unit
        first, last = to_microseconds(np.array([statistics.min_raw, statistics.max_raw], np.int64), stored)
        return int(first), int(last)
    bounds: list[int] = []
    for batch in file.iter_batches(row_groups=[group], columns=[column]):
        known = batch.column(0).drop_null()
        if len(known):
            time = column_times(known, unit)
            bounds += [int(time.min()), int(time.max())]
            bounds = [min(bounds), max(bounds)]
    return (bounds[0], bounds[1]) if bounds else None
