"""Finds the first and last event time of a row group."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

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
    statistics = column_statistics(file, group, column)
    if statistics is None:
        return None
    stored = stored_unit(file.metadata.schema.column(_column_index(file, column))) or unit
    first, last = to_microseconds(np.array([statistics.min_raw, statistics.max_raw], np.int64), stored)
    return int(first), int(last)


def column_statistics(file: pq.ParquetFile, group: int, column: str) -> Any:
    """Returns the statistics of a column in a row group; None if it has no bounds."""
    statistics = file.metadata.row_group(group).column(_column_index(file, column)).statistics
    return None if statistics is None or not statistics.has_min_max else statistics


def stored_unit(column: Any) -> str:
    """Returns the unit of the timestamps of a column of a Parquet schema; an empty text if it holds none.

    It may differ from the unit of the Arrow type: Parquet has no seconds and stores milliseconds.
    """
    logical = json.loads(column.logical_type.to_json())
    return _LOGICAL_UNITS.get(logical.get("timeUnit", ""), "")


def _column_index(file: pq.ParquetFile, column: str) -> int:
    schema = file.metadata.schema
    # The same index as in the Arrow schema but behind structs, which have several columns of the file each.
    likely = file.schema_arrow.get_field_index(column)
    if 0 <= likely < file.metadata.num_columns and schema.column(likely).path == column:
        return int(likely)
    return next(index for index in range(file.metadata.num_columns) if schema.column(index).path == column)
