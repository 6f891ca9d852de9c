"""Example ids that come again: exactly within a window, and across windows by a memory of constant size.

Legend: B rows of a batch, N ids.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exfm.data.ids import U64, mix

Mask = npt.NDArray[np.bool_]

MOST = 65_536
"""Ids that are remembered of earlier windows, 8 bytes each."""

_SALT = 3
_AT_ONCE = 1 << 20
_LONGEST_RUN = 1 << 22
"""To join longer runs would take, for a moment, twice the memory of a window's ids."""


class SeenIds:
    """Ids of the windows before: those with the smallest hashes, all of them where they are few.

    So a repeated id is found for certain in a short stream, and in a long one as soon as enough of them repeat; an id
    that is new is never taken for a repeated one.
    """

    def __init__(self) -> None:
        self._sorted_N: U64 = np.zeros(0, np.uint64)
        self._limit: np.uint64 | None = None  # once they are many: the largest of their hashes

    def add(self, ids: U64) -> None:
        """Remembers ids."""
        for first in range(0, ids.size, _AT_ONCE):
            self._add(ids[first : first + _AT_ONCE])

    def _add(self, ids: U64) -> None:
        if self._limit is not None:
            ids = ids[mix(ids, _SALT) < self._limit]
        together = np.union1d(self._sorted_N, ids)
        if together.size > MOST:
            hashes = mix(together, _SALT)
            kept = np.sort(np.argpartition(hashes, MOST - 1)[:MOST])
            together, self._limit = together[kept], hashes[kept].max()
        self._sorted_N = together

    def has(self, ids_B: U64) -> Mask:
        """Which of some ids are remembered."""
        return _in_sorted(ids_B, self._sorted_N)


class WindowIds:
    """The ids of a window so far, 8 bytes each, beside those of the windows before.

    They are kept as sorted runs, each more than twice as long as the next or else of millions of ids, so that a new
    batch is compared with few of them.
    """

    def __init__(self, before: SeenIds) -> None:
        self._before = before
        self._runs: list[U64] = []

    def repeated(self, ids_B: U64, usable_B: Mask) -> Mask:
        """Which of a batch's usable rows have an id that came before; the ids of the others are remembered."""
        order = np.flatnonzero(usable_B)
        order = order[np.argsort(ids_B[order], kind="stable")]
        sorted_ids = ids_B[order]
        again = np.zeros(order.size, bool)
        again[1:] = sorted_ids[1:] == sorted_ids[:-1]
        again |= self._before.has(sorted_ids)
        for run in self._runs:
            again |= _in_sorted(sorted_ids, run)
        self._keep(sorted_ids[~again])
        repeated_B = np.zeros(ids_B.size, bool)
        repeated_B[order[again]] = True
        return repeated_B

    def all(self) -> list[U64]:
        """The ids of the window."""
        return self._runs

    def _keep(self, new: U64) -> None:
        while self._runs and self._runs[-1].size <= min(2 * new.size, _LONGEST_RUN - new.size):
            new = np.concatenate([self._runs.pop(), new])
            new.sort(kind="stable")
        if new.size:
            self._runs.append(new)


def _in_sorted(ids_B: U64, sorted_N: U64) -> Mask:
    """Which ids are among some that are sorted."""
    if not sorted_N.size or not ids_B.size:
        return np.zeros(ids_B.size, bool)
    place_B = np.minimum(np.searchsorted(sorted_N, ids_B), sorted_N.size - 1)
    found: Mask = sorted_N[place_B] == ids_B
    return found
