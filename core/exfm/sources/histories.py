"""Histories that see strictly earlier events only.

Legend: E events, B rows that ask for a history, H the events of their histories.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_Integers = NDArray[Any]


class Histories:
    """Events in order of key and time, and which of them a row may see: those of its key at strictly earlier times.

    Takes 8 bytes per event while it lives, and some 40 while it is made::

        key     a a a b b          newest(key=a, time=5, most=2) -> the events at 1 and 4
        time    1 4 5 2 9          newest(key=b, time=2, most=2) -> none

    Args:
        key_E: whose events they are, for example users; integers.
        time_E: when they happened, in any unit; integers, in any order. Ties keep the order they are given in.

    Attributes:
        order: the events sorted, (E,): sort by it whatever is known of them, then let it go.

    Raises:
        ValueError: keys and times span so much that a pair does not fit into 64 bits.
    """

    def __init__(self, key_E: _Integers, time_E: _Integers) -> None:
        self.order = np.lexsort((time_E, key_E))
        sorted_E = key_E[self.order]
        new_E = np.diff(sorted_E, prepend=sorted_E[:1] - 1) != 0
        self._keys = sorted_E[new_E]
        self._first_time = int(time_E.min()) if time_E.size else 0
        self._span = (int(time_E.max()) if time_E.size else 0) - self._first_time + 2
        if self._keys.size * self._span > np.iinfo(np.int64).max:
            raise ValueError(f"{self._keys.size} keys over a time of {self._span} units do not fit into 64 bits")
        self._code_E = (np.cumsum(new_E) - 1) * self._span + (time_E[self.order] - self._first_time)

    def newest(self, key_B: _Integers, time_B: _Integers, most: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """The newest ``most`` events that each row may see, oldest first.

        Returns:
            Their places in ``order``, one row's after the other's, (H,); and offsets into them, (B + 1,).
        """
        place_B = np.searchsorted(self._keys, key_B)
        known_B = np.append(self._keys, 0)[place_B] == key_B
        known_B &= place_B < self._keys.size
        since_B = np.clip(time_B.astype(np.int64) - self._first_time, 0, self._span - 1)
        end_B = np.searchsorted(self._code_E, place_B * self._span + since_B)
        start_B = np.maximum(np.searchsorted(self._code_E, place_B * self._span), end_B - most)
        length_B = np.where(known_B, end_B - start_B, 0)
        offsets = np.concatenate([[0], np.cumsum(length_B)]).astype(np.int32)
        within_H = np.arange(offsets[-1]) - np.repeat(offsets[:-1], length_B)
        return np.repeat(start_B, length_B) + within_H, offsets


def list_column(offsets: NDArray[np.int32], values: NDArray[np.generic] | pa.Array) -> pa.ListArray:
    """A column of lists: row i has ``values[offsets[i]:offsets[i + 1]]``."""
    return pa.ListArray.from_arrays(pa.array(offsets), values if isinstance(values, pa.Array) else pa.array(values))
