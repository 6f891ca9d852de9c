"""Finds the first and last event time of a row group."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq

from exfm.sources import TimeUnit, column_times, to_microseconds

_LOGICAL_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}


def group_bounds(file: pq.ParquetFile, group: int, column: str, unit: TimeUnit) -> tuple[int, int] | None:
    """Returns the first and last time in a row group, from its statistics if it has any; None if it has no times."""
    metadata = file.metadata
    index = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
    statistics = metadata.row_group(group).column(index).statistics
    if statistics is not None and statistics.has_min_max:
        # The unit of the Arrow type may differ from the stored unit: Parquet has no seconds and stores milliseconds.
        logical = json.loads(metadata.schema.column(index).logical_type.to_json())
        stored = _LOGICAL_UNITS[logical["timeUnit"]] if "timeUnit" in logical else unit
        first, last = to_microseconds(np.array([statistics.min_raw, statistics.max_raw], np.int64), stored)
        return int(first), int(last)
    # Without statistics, read the column. Keeping only the bounds so far needs constant memory.
    bounds: list[int] = []
    for batch in file.iter_batches(row_groups=[group], columns=[column]):
        present = batch.column(0).drop_null()
        if len(present):
            time = column_times(present, unit)
            bounds += [int(time.min()), int(time.max())]
            bounds = [min(bounds), max(bounds)]
    return (bounds[0], bounds[1]) if bounds else None
