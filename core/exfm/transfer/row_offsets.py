"""Adds projected teacher vectors to rows in training's lookups, and folds them into published tables.

Legend: V rows that are looked up, B bags, K width of a teacher's vector, D width of a table's row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from exfm.interfaces.local_shards import LocalShards, Offsets, StateTensor, local_boxes
from exfm.modeling.parts import table_of
from exfm.modeling.ranking_model import RankingModel
from exfm.modeling.row_offset import RowOffset
from exfm.modeling.vector_table import VectorTable

_ROWS = 65_536
"""Bounds the rows that are folded at once, and so the memory beside the table: 16 MiB at width 64 (ours)."""


class ProjectedVectors(RowOffset):
    """Computes ``projection(v)`` of the newest vector ``v`` of each row.

    Args:
        vectors: the table of the teacher's vectors.
        projection: maps (V, K) to (V, D).
    """

    def __init__(self, vectors: VectorTable, projection: nn.Module) -> None:
        self.vectors, self.projection = vectors, projection
        self._is_linear = isinstance(projection, nn.Linear) and projection.bias is None

    def __call__(self, rows_V: Tensor, feature: str = "") -> Tensor:
        """Maps rows (V,), those of a feature of the batch where it is named, to their offsets (V, D)."""
        added_VD: Tensor = self.projection(self.vectors(rows_V, feature, self._dtype))
        return added_VD

    def of_feature(self, feature: str) -> Tensor | None:
        """Returns the offsets (V, D) of the next batch's ids, whose vectors were looked up with those of the chunk."""
        vector_VK = self.vectors.looked_up.get(feature)
        if vector_VK is None:
            return None
        added_VD: Tensor = self.projection(vector_VK.to(self._dtype))
        return added_VD

    def mean(self, rows_V: Tensor, offsets: Tensor) -> Tensor:
        """Averages the offsets of each bag of rows, (B, D), zeros of an empty bag.

        A linear projection comes after the average, because histories hold many more rows than bags; the averages are
        rounded to the precision of the stored vectors.
        """
        if not self._is_linear:
            return super().mean(rows_V, offsets)
        vector_BK = nn.functional.embedding_bag(
            rows_V, self.vectors.vectors_RK, offsets.to(rows_V.dtype), mode="mean", include_last_offset=True
        )
        added_BD: Tensor = self.projection(vector_BK.to(self._dtype))
        return added_BD

    @property
    def _dtype(self) -> torch.dtype:
        """Returns the precision of the projection, in which stored vectors are read."""
        parameter = next(self.projection.parameters(), None)
        return torch.get_default_dtype() if parameter is None else parameter.dtype


class OffsetSum(RowOffset):
    """Adds up several offsets."""

    def __init__(self, offsets: Sequence[RowOffset]) -> None:
        self.offsets = tuple(offsets)

    def __call__(self, rows_V: Tensor, feature: str = "") -> Tensor:
        """Maps rows (V,), those of a feature of the batch where it is named, to their offsets (V, D)."""
        return _sum([offset(rows_V, feature) for offset in self.offsets])

    def of_feature(self, feature: str) -> Tensor | None:
        """Returns the offsets (V, D) of the next batch's ids, where the vectors of all terms were looked up."""
        terms: list[Tensor] = []
        for offset in self.offsets:
            added_VD = offset.of_feature(feature)
            if added_VD is None:
                return None
            terms.append(added_VD)
        return _sum(terms)

    def mean(self, rows_V: Tensor, offsets: Tensor) -> Tensor:
        """Averages the offsets of each bag of rows, (B, D)."""
        return _sum([offset.mean(rows_V, offsets) for offset in self.offsets])


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def tables_with_offsets(model: RankingModel, state: Mapping[str, StateTensor]) -> dict[str, StateTensor]:
    """Selects the trained tables that have offsets, without the offsets, from the model's state dict."""
    return {name: value for name, value in state.items() if table_of(name) in model.featurizer.offsets}


@torch.no_grad()
def fold_offsets(model: RankingModel, state: Mapping[str, StateTensor]) -> dict[str, StateTensor]:
    """Returns the served tables on the CPU: the trained tables with the offset of each row added.

    A process folds the boxes that it stores.
    """
    folded: dict[str, StateTensor] = {}
    for name, weight in tables_with_offsets(model, state).items():
        offset = model.featurizer.offsets[table_of(name)]
        boxes = {offsets: _folded(box, offsets, offset) for offsets, box in local_boxes(weight).items()}
        # A plain tensor is whole; its type tells the planner of shards that every process has it.
        is_whole = type(weight) in (Tensor, nn.Parameter)
        folded[name] = boxes[0, 0] if is_whole else LocalShards(weight.shape, weight.dtype, boxes)
    return folded


def _folded(box: Tensor, offsets: Offsets, offset: RowOffset) -> Tensor:
    """Adds the offsets of its rows to a box of a table."""
    first_row, first_column = offsets
    columns = slice(first_column, first_column + box.shape[1])
    slices: list[Tensor] = []
    for start, rows in zip(range(0, box.shape[0], _ROWS), torch.split(box, _ROWS), strict=True):
        index = first_row + start + torch.arange(rows.shape[0], device=rows.device)
        slices.append(rows + offset(index)[:, columns])
    return torch.cat(slices).cpu()
