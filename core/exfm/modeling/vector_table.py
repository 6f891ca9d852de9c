"""Stores the newest vectors that a teacher has published for each row of a table, as a student may read them.

Legend: R rows of the table, S vectors, V ids of a feature in a batch, L vectors of a row, K width of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from exfm.modeling.packed_rows import packed_rows


@dataclass(frozen=True)
class RowVectors:
    """Holds vectors of table rows, oldest first; a row may come more than once.

    Attributes:
        row_S: (S,) int64, the table row of each vector.
        vector_SK: (S, K), the vectors.
    """

    row_S: Tensor
    vector_SK: Tensor

    def newest(self, length: int = 1) -> tuple[Tensor, VectorOverride]:
        """Returns the different rows, and the last vectors of each row.

        A table is written row by row from these, because torch keeps any of several values that are written to a row.
        They are computed once, because the tables of several students store the same vectors.

        Args:
            length: L.
        """
        if length not in self._newest:
            key_S, bits = self.sorted
            # The last position of each row: the next key has another row. -1 ends the last row, as rows are not
            # negative.
            last_V = np.flatnonzero(np.diff(key_S >> bits, append=-1))
            row_V = torch.from_numpy(key_S[last_V] >> bits)
            end = self.row_S.numel()
            newest = pick(key_S, bits, torch.from_numpy(last_V), row_V, end, self.vector_SK, length)
            self._newest[length] = row_V, newest
        return self._newest[length]

    @cached_property
    def sorted(self) -> tuple[npt.NDArray[np.int64], int]:
        """Returns the rows packed with their positions, sorted, and how many bits a position has."""
        return packed_rows(self.row_S)

    @cached_property
    def _newest(self) -> dict[int, tuple[Tensor, VectorOverride]]:
        """Holds the results of ``newest``, by length."""
        return {}


@dataclass(frozen=True)
class VectorOverride:
    """Holds, for each id of a feature in a batch, the teacher's vectors that are newer than the stored ones.

    Attributes:
        valid_VL: (V, L) bool, the mask of vectors that precede the example; valid vectors come first.
        vector_VLK: (V, L, K), newest first; meaningless where the mask is false.
    """

    valid_VL: Tensor
    vector_VLK: Tensor

    def slice(self, rows: slice) -> VectorOverride:
        """Returns a slice of the V rows."""
        return VectorOverride(self.valid_VL[rows], self.vector_VLK[rows])

    def apply(self, stored_VK: Tensor) -> Tensor:
        """Returns ``stored_VK`` with the overridden vectors replaced by the newest ones."""
        valid_V1, vector_VK = self.valid_VL[:, :1].to(stored_VK.device), self.vector_VLK[:, 0].to(stored_VK)
        return torch.where(valid_V1, vector_VK, stored_VK)


def pick(
    key_S: npt.NDArray[np.int64],
    bits: int,
    last_V: Tensor,
    row_V: Tensor,
    end: Tensor | int,
    vector_SK: Tensor,
    length: int,
) -> VectorOverride:
    """Picks the vectors of V rows from sorted keys, backwards from an index of each.

    Args:
        key_S: rows packed with positions, sorted (``packed_rows``).
        bits: how many low bits of a key are its position.
        last_V: the index of each row's newest key before ``end``; an index of another row's key where it has no key.
        row_V: the rows.
        end: the first position that must not be read, of all rows or of each (V,).
        vector_SK: the vectors by position.
        length: L.
    """
    index_VL = last_V.unsqueeze(1) - torch.arange(length)
    # An index below 0 reads key 0, because an index must be valid; ``valid_VL`` masks it.
    key_VL = torch.from_numpy(key_S)[index_VL.clamp(min=0)]
    # The low bits are the position, see ``packed_rows``.
    position_VL = key_VL & ((1 << bits) - 1)
    limit = end.unsqueeze(1) if isinstance(end, Tensor) else end
    valid_VL = (index_VL >= 0) & (key_VL >> bits == row_V.unsqueeze(1)) & (position_VL < limit)
    vector_VLK = vector_SK.index_select(0, position_VL.flatten()).view(-1, length, vector_SK.shape[1])
    return VectorOverride(valid_VL, vector_VLK)


class VectorTable(nn.Module):
    """Stores the newest vector of each row that all later examples may read; zeros before the first vector.

    The vectors are written, not trained.

    Args:
        rows: R.
        width: K.
        dtype: the precision of the stored vectors.

    Attributes:
        length: L, the number of newest vectors of a row that are kept.
        overrides: the newer vectors of the next batch, by feature.
        looked_up: the vectors (V, K) of the next batch's ids, overridden already, by feature: those that are looked up
            once for all batches of a chunk.
    """

    vectors_RK: Tensor
    length = 1

    def __init__(self, rows: int, width: int, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.overrides: dict[str, VectorOverride] = {}
        self.looked_up: dict[str, Tensor] = {}
        self.register_buffer("vectors_RK", torch.zeros(rows, width, dtype=dtype))

    def forward(self, rows_V: Tensor, feature: str, dtype: torch.dtype) -> Tensor:
        """Looks up the vectors (V, K) of rows (V,), with the overrides of ``feature`` if it has any."""
        vector_VK = self.vectors_RK.index_select(0, rows_V.to(self.vectors_RK.device)).to(dtype)
        return self.overrides[feature].apply(vector_VK) if feature in self.overrides else vector_VK

    @torch.no_grad()
    def store(self, vectors: RowVectors) -> None:
        """Writes the last vector of each row."""
        row_V, newest = vectors.newest()
        device = self.vectors_RK.device
        vector_VK = newest.vector_VLK[:, 0].to(device, self.vectors_RK.dtype)
        self.vectors_RK.index_copy_(0, row_V.to(device), vector_VK)


class HistoryTable(VectorTable):
    """Stores the L newest vectors of each row that all later examples may read, newest first, in float16.

    Args:
        rows: R.
        width: K.
        length: L.
    """

    count_R: Tensor

    def __init__(self, rows: int, width: int, length: int) -> None:
        super().__init__(rows, length * width)
        self.length, self.width = length, width
        self.register_buffer("count_R", torch.zeros(rows, dtype=torch.uint8))

    def history(self, rows_V: Tensor, feature: str = "") -> tuple[Tensor, Tensor]:
        """Looks up vectors (V, L, K) in float32 and their mask (V, L), with the overrides of ``feature`` if any."""
        stored_VLK = self.vectors_RK.index_select(0, rows_V).float().view(-1, self.length, self.width)
        # int64, because sums of uint8 counts would overflow at 256.
        count_V1 = self.count_R.index_select(0, rows_V).long().unsqueeze(1)
        slot_1L = torch.arange(self.length, device=rows_V.device).unsqueeze(0)
        if feature not in self.overrides:
            return stored_VLK, slot_1L < count_V1
        newer = self.overrides[feature]
        newer_VLK, valid_VL = newer.vector_VLK[:, : self.length].to(stored_VLK), newer.valid_VL[:, : self.length]
        newer_V1 = valid_VL.to(rows_V.device).sum(dim=1, keepdim=True)
        # Newer vectors take the first slots, and stored vectors move back by as many.
        older_VL = (slot_1L - newer_V1).clamp(min=0)
        older_VLK = stored_VLK.gather(1, older_VL.unsqueeze(2).expand_as(stored_VLK))
        valid_VL = slot_1L < newer_V1 + count_V1
        vector_VLK = torch.where((slot_1L < newer_V1).unsqueeze(2), newer_VLK, older_VLK)
        return torch.where(valid_VL.unsqueeze(2), vector_VLK, 0.0), valid_VL

    @torch.no_grad()
    def store(self, vectors: RowVectors) -> None:
        """Inserts the last vectors of each row before its stored vectors, and drops the oldest."""
        row_V, newest = vectors.newest(self.length)
        row_V = row_V.to(self.vectors_RK.device)
        # ``history`` merges stored and newer vectors: an override of no feature's name, which no batch reads.
        self.overrides = {"": newest}
        vector_VLK, valid_VL = self.history(row_V)
        self.overrides = {}
        self.vectors_RK.index_copy_(0, row_V, vector_VLK.flatten(1).to(self.vectors_RK.dtype))
        self.count_R.index_copy_(0, row_V, valid_VL.sum(dim=1).to(torch.uint8))
