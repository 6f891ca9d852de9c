"""The newest vector that a teacher has published for each row of a table, as a student may know it.

Legend: R rows of the table, S vectors, V ids of a feature in a batch, K width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from exfm.modeling.packed_rows import packed_rows


@dataclass(frozen=True)
class RowVectors:
    """Holds vectors of table rows, oldest first; a row may come more than once.

    Attributes:
        row_S: (S,) int64, the table row of each.
        vector_SK: (S, K).
    """

    row_S: Tensor
    vector_SK: Tensor

    def newest(self) -> RowVectors:
        """Returns the last vector of each row: torch keeps any of the values that are written to one row."""
        key_S, bits = packed_rows(self.row_S)
        last = torch.from_numpy(key_S[np.diff(key_S >> bits, append=-1) != 0])
        return RowVectors(last >> bits, self.vector_SK.index_select(0, last & ((1 << bits) - 1)))


@dataclass(frozen=True)
class VectorOverride:
    """Holds, for each id of a feature in a batch, the teacher's vector that is newer than the stored one.

    Attributes:
        known_V: (V,) bool, whether there is a newer vector that precedes the example.
        vector_VK: (V, K), the newest of them; meaningless where there is none.
    """

    known_V: Tensor
    vector_VK: Tensor

    def apply(self, stored_VK: Tensor) -> Tensor:
        """Returns ``stored_VK`` with the overridden vectors replaced."""
        known_V, vector_VK = self.known_V.to(stored_VK.device), self.vector_VK.to(stored_VK)
        return torch.where(known_V.unsqueeze(1), vector_VK, stored_VK)


class VectorTable(nn.Module):
    """Stores the newest vector of each row that all later examples may know, zeros before there is one.

    The vectors are written, not trained.

    Args:
        rows: R.
        width: K.
        dtype: the precision of the stored vectors.

    Attributes:
        overrides: by feature, the newer vectors of the coming batch.
    """

    vectors_RK: Tensor

    def __init__(self, rows: int, width: int, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        self.overrides: Mapping[str, VectorOverride] = {}
        self.register_buffer("vectors_RK", torch.zeros(rows, width, dtype=dtype))

    def forward(self, rows_V: Tensor, feature: str, dtype: torch.dtype) -> Tensor:
        """Looks up the vectors (V, K) of rows (V,), those of a feature of the batch where it is named."""
        vector_VK = self.vectors_RK.index_select(0, rows_V).to(dtype)
        return self.overrides[feature].apply(vector_VK) if feature in self.overrides else vector_VK

    @torch.no_grad()
    def store(self, vectors: RowVectors) -> None:
        """Writes the last vector of each row."""
        newest, device = vectors.newest(), self.vectors_RK.device
        self.vectors_RK.index_copy_(0, newest.row_S.to(device), newest.vector_SK.to(device, self.vectors_RK.dtype))
