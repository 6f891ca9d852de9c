"""Computes the ages of events in a history: the time from an event to its example.

Legend: B rows, E events of all rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from exfm.data.column_types import list_lengths
from exfm.interfaces.schema import EventTimes

I64 = npt.NDArray[np.int64]

US_PER_SECOND = 1_000_000
_US = {"us": 1, "ms": 1_000, "s": US_PER_SECOND, "min": 60 * US_PER_SECOND, "h": 3_600 * US_PER_SECOND}
_US["d"] = 24 * _US["h"]


def time_us(column: pa.Array) -> I64:
    """Converts timestamps to microseconds since 1970, UTC; 0 where missing."""
    times = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    return np.asarray(pc.fill_null(times, 0).to_numpy(zero_copy_only=False))


def event_ages_us(rows: pa.RecordBatch, times: EventTimes, event_time: str) -> I64:
    """Returns the time from each event to its example in microseconds, (E,), oldest event first.

    Args:
        rows: checked rows.
        times: the column of the events' times, and its unit.
        event_time: the column of the rows' times, which ages do not need.
    """
    column = rows.column(times.column)
    values_E = _in_us(column.flatten(), times)
    if times.holds == "age":
        return values_E
    return np.repeat(time_us(rows.column(event_time)), list_lengths(column)) - values_E


def bad_events(rows: pa.RecordBatch, times: EventTimes, event_time: str) -> tuple[npt.NDArray[np.bool_], str]:
    """Returns a mask of the events without a time, or with a time after their example's, (E,), and the reason."""
    column = rows.column(times.column)
    values = column.flatten()
    bad_E = np.asarray(values.is_null().to_numpy(zero_copy_only=False))
    if not types.is_timestamp(values.type):
        bad_E = bad_E | ~_fits(values, times)
    values_E = np.where(bad_E, 0, _in_us(values, times))
    if times.holds == "age":
        return bad_E | (values_E < 0), "an event's age is missing, negative, or longer than 64 bits hold"
    after_E = values_E > np.repeat(time_us(rows.column(event_time)), list_lengths(column))
    return bad_E | (after_E & ~bad_E), "an event's time is missing, or later than its example"


def _in_us(values: pa.Array, times: EventTimes) -> I64:
    """Converts times or ages to microseconds; 0 where 64 bits do not suffice."""
    if types.is_timestamp(values.type):
        return time_us(values)
    # Float to integer is undefined out of range, so those numbers are replaced before the cast.
    numbers = _in_double(values) * _US[times.unit]
    return np.where(_fits(values, times), numbers, 0).astype(np.int64)


def _fits(values: pa.Array, times: EventTimes) -> npt.NDArray[np.bool_]:
    """Returns a mask of the numbers that are finite, and in microseconds fit into 64 bits."""
    # 2**62 and not 2**63, so that a difference of two times fits too.
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.abs(_in_double(values) * _US[times.unit]) < 2.0**62)


def _in_double(values: pa.Array) -> npt.NDArray[np.float64]:
    return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
