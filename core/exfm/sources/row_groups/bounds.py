"""Finds the first and last event time of a row group."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exfm.sources.times import TimeUnit, column_times, to_microseconds

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_LOGICAL_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}


def group_bounds(
    file: pq.ParquetFile, group: int, column: str, unit: TimeUnit, kept_R: NDArray[np.bool_] | None = None
) -> tuple[int, int] | None:
    """Returns the first and last time in a row group, from its statistics if it has any; None if it has no times.

    Args:
        kept_R: the rows of the group that count; all if None. Statistics, which include the others, are not used.
    """
    if kept_R is None:
        bounds = _statistics(file, group, column, unit)
        if bounds is not None:
            return bounds
    # Without statistics, read the column. Keeping only the bounds so far needs constant memory.
    reached: list[int] = []
    start = 0
    for batch in file.iter_batches(row_groups=[group], columns=[column]):
        present_B = batch.column(0).is_valid().to_numpy(zero_copy_only=False)
        if kept_R is not None:
            present_B &= kept_R[start : start + batch.num_rows]
        start += batch.num_rows
        if present_B.any():
            time = column_times(batch.column(0), unit)[present_B]
            reached += [int(time.min()), int(time.max())]
            reached = [min(reached), max(reached)]
    return (reached[0], reached[1]) if reached else None


def _statistics(file: pq.ParquetFile, group: int, column: str, unit: TimeUnit) -> tuple[int, int] | None:
    metadata = file.metadata
    index = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
    statistics = metadata.row_group(group).column(index).statistics
    if statistics is None or not statistics.has_min_max:
        return None
    # The unit of the Arrow type may differ from the stored unit: Parquet has no seconds and stores milliseconds.
    logical = json.loads(metadata.schema.column(index).logical_type.to_json())
    stored = _LOGICAL_UNITS[logical["timeUnit"]] if "timeUnit" in logical else unit
    first, last = to_microseconds(np.array([statistics.min_raw, statistics.max_raw], np.int64), stored)
    return int(first), int(last)
