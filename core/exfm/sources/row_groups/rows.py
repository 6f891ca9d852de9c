"""Completes and selects rows of a row group.

Legend: R rows of a row group, B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exfm.interfaces.data_source import ROW_NUMBER, Origin
from exfm.sources.row_groups.order import StreamFile
from exfm.sources.times import TimeUnit, column_times


def filled_times(column: pa.Array, unit: TimeUnit, before_us: int) -> tuple[pa.Array, NDArray[np.int64]]:
    """Returns the times of a row group in microseconds, with and without missing times.

    Args:
        column: the times.
        unit: what they count.
        before_us: the time that a missing time takes where no row is before it.
    """
    missing_R = column.is_null().to_numpy(zero_copy_only=False)
    time_R = column_times(column, unit)
    filled_R = time_R
    if missing_R.any():
        # Row whose time each row takes: the running maximum carries the last row with a time forward.
        source_R = np.maximum.accumulate(np.where(missing_R, -1, np.arange(missing_R.size)))
        filled_R = np.where(source_R < 0, before_us, time_R[source_R])
    return pa.array(time_R, mask=missing_R).view(pa.timestamp("us")), filled_R


def with_file_columns(batch: pa.RecordBatch, file: StreamFile, columns: Sequence[str]) -> pa.RecordBatch:
    """Adds the columns whose value is that of the whole file; a column in the file has precedence."""
    for name, value in file.columns.items():
        if name in columns and name not in batch.schema.names:
            batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
    return batch


def pick_rows(batch: pa.RecordBatch, inside_B: NDArray[np.bool_], origin: Origin) -> pa.RecordBatch:
    """Selects rows of a batch, and marks them with their place in the file."""
    rows = np.flatnonzero(inside_B)
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == rows.size:
        return replace(origin, row=origin.row + first).mark(batch.slice(first, rows.size))
    numbered = batch.append_column(ROW_NUMBER, pa.array(origin.row + np.arange(batch.num_rows)))
    return origin.mark(numbered.take(pa.array(rows)))
