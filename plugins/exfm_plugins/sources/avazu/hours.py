"""Parses hours in Avazu's notation, YYMMDDHH, and finds the first row of each hour."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import exfm

HOUR_US = 3_600_000_000


def hour_times(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """Returns the time of every row's hour in microseconds since 1970.

    Raises:
        ValueError: an hour is empty or not in the calendar; the message names file and row.
    """
    hours = batch.column("hour").fill_null(-1).to_numpy()
    # Parse each distinct hour once, because most batches hold only 1 or 2 hours.
    distinct, index_B = np.unique(hours, return_inverse=True)
    return np.array([_time(hour, batch, hours) for hour in distinct.tolist()], np.int64)[index_B]


def _time(hour: int, batch: pa.RecordBatch, hours: NDArray[np.int64]) -> int:
    try:
        return int(datetime.strptime(f"{hour:08d}", "%y%m%d%H").replace(tzinfo=UTC).timestamp()) * 1_000_000
    except ValueError:
        origin = exfm.sources.Origin.from_batch(batch)
        row = origin.row + int(np.flatnonzero(hours == hour)[0])
        shown = "nothing" if hour < 0 else hour
        raise ValueError(f"avazu: {origin.file}, row {row}: hour: expected YYMMDDHH, given {shown}") from None


class HourStarts:
    """Finds the first row of each hour; a row with an earlier hour belongs to the hour that the file has reached.

    Args:
        batches: all rows of the file, in order, with the column ``hour``.
    """

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self.times: list[int] = []
        self._rows: list[int] = []
        self._end = 0
        for batch in batches:
            # Below every hour, so that the first row begins an hour.
            reached = self.times[-1] if self.times else -HOUR_US
            time_B = np.maximum.accumulate(np.maximum(hour_times(batch), reached))
            new_B = np.diff(time_B, prepend=reached) > 0
            self.times += time_B[new_B].tolist()
            self._rows += (np.flatnonzero(new_B) + self._end).tolist()
            self._end += batch.num_rows

    def rows(self, window: exfm.sources.Window) -> tuple[int, int]:
        """Returns the first row of a window, and the row after its last."""
        return self._row(window.start_us), self._row(window.end_us)

    def _row(self, time_us: int) -> int:
        index = bisect_left(self.times, time_us)
        return self._rows[index] if index < len(self._rows) else self._end
