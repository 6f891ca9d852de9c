"""Converts the event times of sources to microseconds since 1970."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

TimeUnit = Literal["timestamp", "s", "ms", "us", "ns"]

# The last microsecond of Python's datetime; a later time was read with the wrong unit.
YEAR_9999_US = 253_402_300_799_999_999
_MOST = np.iinfo(np.int64).max
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def to_microseconds(value: NDArray[np.int64], unit: str) -> NDArray[np.int64]:
    """Converts times to microseconds; nanoseconds are rounded down, and times beyond 64 bits become the largest."""
    per_second = _PER_SECOND[unit]
    if per_second > 1_000_000:
        return value // (per_second // 1_000_000)
    factor = 1_000_000 // per_second
    # Clipped before the product, because integers overflow silently and a time would wrap around.
    most = _MOST // factor
    return np.clip(value, -most, most) * factor


def column_times(column: pa.Array, unit: TimeUnit) -> NDArray[np.int64]:
    """Returns the times of a column of timestamps, or of integers that count ``unit``; a missing time is 0."""
    stored = column.type.unit if pa.types.is_timestamp(column.type) else unit
    return to_microseconds(column.cast(pa.int64()).fill_null(0).to_numpy(), stored)
