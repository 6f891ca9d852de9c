"""A teacher's vectors of a table's rows, through a learned map: a TableOffset.

Legend: R rows of the table, V rows that are looked up, B bags, K width of a vector, D width of the student's rows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from exfm.interfaces.table_offset import TableOffset
from exfm.interfaces.transfer_strategy import Recent


class MappedRows(TableOffset):
    """``P t``: of every row the newest vector ``t`` that was told, zeros before there is one, and the map ``P``.

    Args:
        rows: R.
        width: K.
        dim: D.
        scale: P starts as the identity times this.
        dtype: of the vectors that are kept.
        saved: whether they are part of the state dict.

    Attributes:
        recent: by feature, what is newer for the coming batch.
    """

    vectors_RK: Tensor

    def __init__(
        self, rows: int, width: int, dim: int, scale: float, *, dtype: torch.dtype = torch.float32, saved: bool = True
    ) -> None:
        super().__init__()
        self.recent: Mapping[str, Recent] = {}
        self.register_buffer("vectors_RK", torch.zeros(rows, width, dtype=dtype), persistent=saved)
        self.map = nn.Linear(width, dim, bias=False)
        nn.init.eye_(self.map.weight)
        with torch.no_grad():
            self.map.weight.mul_(scale)

    def forward(self, rows_V: Tensor, feature: str = "") -> Tensor:
        """Maps rows (V,), of a feature where it is named, to what is added to them, (V, D)."""
        vector_VK = self.vectors_RK.index_select(0, rows_V).to(self.map.weight.dtype)
        if feature in self.recent:
            vector_VK = self.recent[feature].over(vector_VK)
        added_VD: Tensor = self.map(vector_VK)
        return added_VD

    def mean(self, rows_V: Tensor, offsets: Tensor) -> Tensor:
        """The average over each bag of rows, (B, D), zeros of an empty one.

        Vectors are averaged before the map, and the averages rounded to the precision in which vectors are kept.
        """
        vector_BK = nn.functional.embedding_bag(
            rows_V, self.vectors_RK, offsets.to(rows_V.dtype), mode="mean", include_last_offset=True
        )
        added_BD: Tensor = self.map(vector_BK.to(self.map.weight.dtype))
        return added_BD

    @torch.no_grad()
    def keep(self, rows_S: Tensor, vector_SK: Tensor) -> None:
        """Writes vectors (S, K) of different rows (S,)."""
        self.vectors_RK.index_copy_(
            0, rows_S.to(self.vectors_RK.device), vector_SK.to(self.vectors_RK.device, self.vectors_RK.dtype)
        )
