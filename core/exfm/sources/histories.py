"""Builds histories that contain strictly earlier events only.

Legend: E events, B rows that ask for a history, H the events of their histories.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_Integers = NDArray[Any]


class Histories:
    """Sorts events by key and time, and finds the events of a row's key at strictly earlier times.

    Takes 8 bytes of memory per event, and about 40 during construction::

        key     a a a b b          newest(key=a, time=5, most=2) -> the events at 1 and 4
        time    1 4 5 2 9          newest(key=b, time=2, most=2) -> none

    Args:
        key_E: the key of each event, for example its user; integers.
        time_E: the time of each event, in any unit; integers, in any order. Equal times keep their order.

    Attributes:
        order: indices that sort the events, (E,): apply it to every other array of events, then delete it.

    Raises:
        ValueError: keys and times span so much that a pair does not fit into 64 bits.
    """

    def __init__(self, key_E: _Integers, time_E: _Integers) -> None:
        self.order = np.lexsort((time_E, key_E))
        sorted_E = key_E[self.order]
        new_E = np.diff(sorted_E, prepend=sorted_E[:1] - 1) != 0
        self._keys = sorted_E[new_E]
        self._first_time = last_time = 0
        if time_E.size:
            self._first_time, last_time = int(time_E.min()), int(time_E.max())
        # Plus 2, because a row may ask for the time after the last event.
        self._span = last_time - self._first_time + 2
        if self._keys.size * self._span > np.iinfo(np.int64).max:
            raise ValueError(f"{self._keys.size} keys over a time of {self._span} units do not fit into 64 bits")
        # Key and time in a single sorted integer, so that a binary search finds both.
        self._code_E = (np.cumsum(new_E) - 1) * self._span + (time_E[self.order] - self._first_time)

    def newest(self, key_B: _Integers, time_B: _Integers, most: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Finds the newest ``most`` events before each row, oldest first.

        Returns:
            Positions in ``order``, row by row, (H,); and the offsets of the rows, (B + 1,).
        """
        position_B = np.searchsorted(self._keys, key_B)
        # A sentinel at the end, because the position of a key after all keys is out of range.
        has_events_B = np.append(self._keys, 0)[position_B] == key_B
        has_events_B &= position_B < self._keys.size
        # Clipped, so that a time outside the events' times does not reach the codes of another key.
        since_B = np.clip(time_B.astype(np.int64) - self._first_time, 0, self._span - 1)
        # The left side of equal codes: events at the row's own time are excluded.
        end_B = np.searchsorted(self._code_E, position_B * self._span + since_B)
        start_B = np.maximum(np.searchsorted(self._code_E, position_B * self._span), end_B - most)
        length_B = np.where(has_events_B, end_B - start_B, 0)
        offsets = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int32)
        within_H = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length_B)
        return np.repeat(start_B, length_B) + within_H, offsets


def list_column(offsets: NDArray[np.int32], values: NDArray[np.generic] | pa.Array) -> pa.ListArray:
    """Makes a column of lists: row i has ``values[offsets[i]:offsets[i + 1]]``."""
    if not isinstance(values, pa.Array):
        values = pa.array(values)
    return pa.ListArray.from_arrays(pa.array(offsets), values)
