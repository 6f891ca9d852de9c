"""First and last event time of a row group."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq

from exfm.sources import TimeUnit, column_times, to_microseconds

_LOGICAL_UNITS = {"milliseconds": "ms", "microseconds": "us", "nanoseconds": "ns"}


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
