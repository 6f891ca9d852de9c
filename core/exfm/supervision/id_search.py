"""Searches ids among sorted ids.

Legend: B queried ids.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def search(sorted_id: Ids, queried_B: Ids) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Returns the index (B,) of each queried id among at least 1 sorted id, and a mask of the ids that exist.

    Of equal ids the index is that of the first; the index of an id that does not exist has no meaning.
    """
    # Sorted queries search neighbouring positions, which are in the CPU's cache.
    order = np.argsort(queried_B)
    # An id above all others would have the index after the last.
    indices = np.minimum(np.searchsorted(sorted_id, queried_B[order]), sorted_id.size - 1)
    index_B = np.empty_like(indices)
    index_B[order] = indices
    return index_B, sorted_id[index_B] == queried_B
