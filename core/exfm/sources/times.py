"""Event times: whatever a source stores, in microseconds since 1970."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

TimeUnit = Literal["timestamp", "s", "ms", "us", "ns"]

# The last microsecond that a calendar can name; what lies past it was read with the wrong unit.
YEAR_9999_US = 253_402_300_799_999_999
_MOST = np.iinfo(np.int64).max
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def to_microseconds(value: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
    """Converts times between units; nanoseconds are rounded down, and what 64 bits cannot hold becomes the largest."""
    per_second = _PER_SECOND[unit]
    if per_second > 1_000_000:
        return value // (per_second // 1_000_000)
    factor = 1_000_000 // per_second
    most = _MOST // factor
    return np.clip(value, -most, most) * factor


def column_times(column: pa.Array, unit: TimeUnit) -> NDArray[np.int64]:
    """The times of a column of timestamps, or of integers that count ``unit``; a missing one is 0."""
    stored = column.type.unit if pa.types.is_timestamp(column.type) else unit
    return to_microseconds(column.cast(pa.int64()).fill_null(0).to_numpy(), stored)
