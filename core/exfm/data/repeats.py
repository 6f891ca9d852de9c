"""Finds repeated example ids: exactly within a window, and across windows by a sample of constant size.

Legend: B rows of a batch, N ids.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exfm.sources.ids import U64, mix

Mask = npt.NDArray[np.bool_]

MOST = 65_536
"""Number of ids remembered from earlier windows, 8 bytes each."""

REPEATED = "this example id came before"
"""The reason why a row with a repeated example id is bad."""

# Independent of the hashes of table rows, buckets and groups.
_SALT = 3
# Ids added in a single step: bounds the temporary arrays.
_AT_ONCE = 1 << 20
_LONGEST_RUN = 1 << 22
"""Longer runs are not joined, because that would take twice the memory of a window's ids for a moment."""


class SeenIds:
    """Remembers ids of earlier windows: those with the smallest hashes, and all of them while they are few.

    In a short stream every repeated id is found, in a long stream some are, as soon as enough ids repeat. A new id is
    never reported as repeated.
    """

    def __init__(self) -> None:
        self._sorted_N: U64 = np.zeros(0, np.uint64)
        # The largest remembered hash, once ids have been dropped.
        self._limit: np.uint64 | None = None

    def add(self, ids: U64) -> None:
        """Remembers ids."""
        for first in range(0, ids.size, _AT_ONCE):
            self._add(ids[first : first + _AT_ONCE])

    def _add(self, ids: U64) -> None:
        # Larger hashes would be dropped anyway, and the sample that remains does not depend on the batches.
        if self._limit is not None:
            ids = ids[mix(ids, _SALT) < self._limit]
        # numpy's stable sort merges sorted arrays in linear time; np.union1d hashes, which takes longer.
        together = np.sort(np.concatenate([self._sorted_N, ids]), kind="stable")
        together = together[np.append(True, together[1:] != together[:-1])] if together.size else together
        if together.size > MOST:
            hashes = mix(together, _SALT)
            # Positions in order, so that the ids stay sorted.
            kept = np.sort(np.argpartition(hashes, MOST - 1)[:MOST])
            together, self._limit = together[kept], hashes[kept].max()
        self._sorted_N = together

    def ids(self) -> U64:
        """Returns the ids that are remembered."""
        return self._sorted_N

    def has(self, ids_B: U64) -> Mask:
        """Returns a mask of the ids that are remembered."""
        return _in_sorted(ids_B, self._sorted_N)


class WindowIds:
    """Collects the ids of a window, 8 bytes each, and compares them with those of earlier windows.

    Ids are kept as sorted runs, because a new batch is then compared with few of them: each run is more than twice as
    long as the next, or has millions of ids.
    """

    def __init__(self, before: SeenIds) -> None:
        self._before = before
        self._runs: list[U64] = []

    def repeated(self, ids_B: U64, usable_B: Mask) -> Mask:
        """Returns a mask of the usable rows whose id came before, and remembers the ids of the other usable rows."""
        order = np.flatnonzero(usable_B)
        # Stable, so that the first row of an id in the batch is the good row.
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
        """Returns the ids of the window, as sorted arrays."""
        return self._runs

    def _keep(self, new: U64) -> None:
        """Adds a sorted run, joined with shorter runs before it."""
        while self._runs and self._runs[-1].size <= min(2 * new.size, _LONGEST_RUN - new.size):
            new = np.concatenate([self._runs.pop(), new])
            # numpy's stable sort (timsort) merges two sorted halves in linear time.
            new.sort(kind="stable")
        if new.size:
            self._runs.append(new)


def _in_sorted(ids_B: U64, sorted_N: U64) -> Mask:
    """Returns a mask of the ids that are among sorted ids."""
    if not sorted_N.size or not ids_B.size:
        return np.zeros(ids_B.size, bool)
    position_B = np.minimum(np.searchsorted(sorted_N, ids_B), sorted_N.size - 1)
    mask_B: Mask = sorted_N[position_B] == ids_B
    return mask_B
