"""What transfer adds to table rows: beside the tables while a student trains, inside them in what is published.

Legend: D width of a row.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from exfm.interfaces.table_offset import TableOffset
from exfm.modeling.parts import table_of
from exfm.modeling.ranking_model import RankingModel

_ROWS = 65_536


def add_offsets(model: RankingModel, offsets: Mapping[str, TableOffset]) -> None:
    """Makes lookups of the named tables add a strategy's offsets, beside those that another strategy adds."""
    for table, offset in offsets.items():
        standing = model.featurizer.offsets.get(table)
        model.featurizer.offsets[table] = offset if standing is None else _Sum(standing, offset)


class _Sum(TableOffset):
    def __init__(self, first: TableOffset, second: TableOffset) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, rows_V: Tensor, feature: str = "") -> Tensor:
        added_VD: Tensor = self.first(rows_V, feature) + self.second(rows_V, feature)
        return added_VD

    def mean(self, rows_V: Tensor, offsets: Tensor) -> Tensor:
        return self.first.mean(rows_V, offsets) + self.second.mean(rows_V, offsets)


def tables_with_offsets(model: RankingModel) -> dict[str, Tensor]:
    """The tables that have offsets, as they are trained, by their name in the state dict."""
    return {name: value for name, value in model.state_dict().items() if table_of(name) in model.featurizer.offsets}


@torch.no_grad()
def fold_offsets(model: RankingModel) -> dict[str, Tensor]:
    """The same tables with their offsets added to every row, on the CPU: what is served looks up these."""
    folded = {}
    for name, weight in tables_with_offsets(model).items():
        offset = model.featurizer.offsets[table_of(name)]
        parts = [
            part + offset(torch.arange(start, start + part.shape[0], device=part.device))
            for start, part in zip(range(0, weight.shape[0], _ROWS), torch.split(weight, _ROWS), strict=True)
        ]
        folded[name] = torch.cat(parts).cpu()
    return folded
