"""Vectors that a teacher makes along a stream, and which of them a student knows at a place and time of it.

Legend: S vectors, L examples of a student, K width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from exfm.interfaces.packed_rows import packed_rows
from exfm.interfaces.transfer_strategy import Recent


@dataclass(frozen=True)
class MadeVectors:
    """S vectors of one column, in the order of the examples they were made of.

    Attributes:
        row_S: the table row that each is of.
        place_S: its example's place in the chunk; -1 of an earlier chunk.
        time_us_S: its example's time.
        vector_SK: the vectors.
    """

    row_S: Tensor
    place_S: Tensor
    time_us_S: Tensor
    vector_SK: Tensor

    def known(self, place_L: Tensor, time_us_L: Tensor, lag_us: int) -> Tensor:
        """How many of them, the first ones, are known at each of L rows of the chunk: (L,)."""
        earlier_L = _count_below(self.place_S, place_L)
        if not lag_us:  # those of earlier examples are of no later time
            return earlier_L
        return torch.minimum(earlier_L, torch.searchsorted(self.time_us_S, time_us_L - lag_us, right=True))

    def newest(self, row_L: Tensor, known_L: Tensor) -> Recent:
        """For each of L table rows the last of its vectors among the first ones."""
        if not self.row_S.numel():
            return Recent(torch.zeros_like(row_L, dtype=torch.bool), self.vector_SK.new_zeros(len(row_L), self.width))
        key_S, bits = packed_rows(self.row_S)
        found_L = np.searchsorted(key_S, (row_L.numpy() << bits) | known_L.numpy()) - 1
        key_L = torch.from_numpy(key_S[found_L])  # before the first one of all lies the last, of another row or unknown
        newest_L = key_L & ((1 << bits) - 1)
        return Recent((key_L >> bits == row_L) & (newest_L < known_L), self.vector_SK.index_select(0, newest_L))

    @property
    def width(self) -> int:
        """K."""
        return self.vector_SK.shape[1]

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows and vectors of the first ones."""
        return self.row_S[:count], self.vector_SK[:count]

    def after(self, count: int) -> MadeVectors:
        """All but the first ones, for the chunks to come."""
        rest = slice(count, None)
        held = torch.full_like(self.place_S[rest], -1)
        return MadeVectors(self.row_S[rest].clone(), held, self.time_us_S[rest].clone(), self.vector_SK[rest].clone())

    def followed_by(self, later: MadeVectors) -> MadeVectors:
        """Both, in order."""
        return MadeVectors(
            torch.cat([self.row_S, later.row_S]),
            torch.cat([self.place_S, later.place_S]),
            torch.cat([self.time_us_S, later.time_us_S]),
            torch.cat([self.vector_SK, later.vector_SK]),
        )


def _count_below(place_S: Tensor, place_L: Tensor) -> Tensor:
    """How many of the places (S,), -1 or more, are below each of L places: by counting, not by L searches."""
    if not place_L.numel():
        return place_L
    places = int(place_L[-1]) + 1
    below = torch.bincount(place_S[place_S < places] + 1, minlength=places + 1).cumsum(0)
    return below.index_select(0, place_L)
