"""Collects the rows of tables that training may have changed, without looking at the tables."""

from __future__ import annotations

import torch
from torch import Tensor

_MANY = 1 << 20
"""Row numbers that are collected before repeated numbers are dropped: 8 MiB."""


class ChangedRows:
    """Collects row numbers by table. Memory grows with the different rows, and not with the lookups."""

    def __init__(self) -> None:
        self._rows: dict[str, list[Tensor]] = {}
        # By table, how many more numbers are collected until repeated ones are dropped.
        self._room: dict[str, int] = {}

    def add(self, table: str, rows: Tensor) -> None:
        """Adds rows (N,), with repetitions, of a table."""
        collected = self._rows.setdefault(table, [])
        collected.append(rows)
        self._room[table] = self._room.get(table, _MANY) - rows.numel()
        if self._room[table] < 0:
            distinct = _distinct(collected)
            self._rows[table] = [distinct]
            # As many as there are, so that each number is sorted a constant number of times on average.
            self._room[table] = _MANY + distinct.numel()

    def take(self) -> dict[str, Tensor]:
        """Returns the rows of each table, ascending and each once, on the CPU; begins anew."""
        taken = {table: _distinct(rows) for table, rows in self._rows.items()}
        self._rows.clear()
        self._room.clear()
        return taken


def _distinct(rows: list[Tensor]) -> Tensor:
    distinct: Tensor = torch.unique(torch.cat(rows).to(torch.int64)).cpu()
    return distinct
