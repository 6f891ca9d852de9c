"""Selects, of the vectors that a teacher computes along a stream, those that a student may read at an example.

Legend: S vectors, L examples of a student, K width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from exfm.modeling.vector_table import RowVectors, VectorOverride, pick


@dataclass(frozen=True)
class PendingVectors:
    """Holds S vectors of a column that not all later examples may read yet, in the order of their examples.

    Attributes:
        row_S: the table row of each vector.
        position_S: the position of its example in the chunk; -1 where the example was in an earlier chunk.
        time_us_S: the time of its example.
        vector_SK: the vectors.
    """

    row_S: Tensor
    position_S: Tensor
    time_us_S: Tensor
    vector_SK: Tensor

    def count_known(self, position_L: Tensor, time_us_L: Tensor, lag_us: int) -> Tensor:
        """Counts the leading vectors (L,) that may be read at each of L examples of the chunk."""
        earlier_L = self._earlier.index_select(0, position_L.clamp(max=self._earlier.numel() - 1))
        # Without a lag positions decide alone, because the stream is sorted by time.
        if not lag_us:
            return earlier_L
        return torch.minimum(earlier_L, torch.searchsorted(self.time_us_S, time_us_L - lag_us, right=True))

    def newest(self, row_L: Tensor, visible_L: Tensor, length: int = 1) -> VectorOverride:
        """Picks, for each of L table rows, its last vectors among the first ``visible_L``, newest first.

        Args:
            row_L: the rows.
            visible_L: how many leading vectors each example may read.
            length: how many vectors of a row are picked at most.
        """
        if not self.row_S.numel():
            unknown = torch.zeros(len(row_L), length, dtype=torch.bool)
            return VectorOverride(unknown, self.vector_SK.new_zeros(len(row_L), length, self.width))
        key_S, bits = self._rows.sorted
        # The key before (row, visible): the row's last vector whose position is below ``visible``.
        last_L = torch.from_numpy(np.searchsorted(key_S, (row_L.numpy() << bits) | visible_L.numpy()) - 1)
        return pick(key_S, bits, last_L, row_L, visible_L, self.vector_SK, length)

    @cached_property
    def _rows(self) -> RowVectors:
        """Returns rows and vectors; a cache, because students with the same vectors share what is computed of them."""
        return RowVectors(self.row_S, self.vector_SK)

    @cached_property
    def _earlier(self) -> Tensor:
        """Counts the vectors before each position of the chunk, up to the position after the last vector's.

        A cumulative sum of counts is linear, where a binary search for each example is not.
        """
        # Shifted by 1, because a count has no index -1.
        return torch.bincount(self.position_S + 1, minlength=1).cumsum(0)

    @property
    def width(self) -> int:
        """Returns K."""
        return self.vector_SK.shape[1]

    def first(self, count: int) -> RowVectors:
        """Returns rows and vectors of the first ``count`` vectors."""
        if count == self.row_S.numel():
            return self._rows
        return RowVectors(self.row_S[:count], self.vector_SK[:count])

    def after(self, count: int) -> PendingVectors:
        """Copies all but the first ``count`` vectors, for later chunks."""
        # Copies, because a view would keep the whole chunk's vectors in memory.
        later = slice(count, None)
        earlier_chunk = torch.full_like(self.position_S[later], -1)
        return PendingVectors(
            self.row_S[later].clone(), earlier_chunk, self.time_us_S[later].clone(), self.vector_SK[later].clone()
        )

    def followed_by(self, later: PendingVectors) -> PendingVectors:
        """Appends later vectors."""
        return PendingVectors(
            torch.cat([self.row_S, later.row_S]),
            torch.cat([self.position_S, later.position_S]),
            torch.cat([self.time_us_S, later.time_us_S]),
            torch.cat([self.vector_SK, later.vector_SK]),
        )
