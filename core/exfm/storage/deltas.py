"""Saves of large tables the rows that changed since the snapshot before.

A snapshot is full, or a delta: it has the rows of large tables that may have changed since another snapshot, and
everything else whole. So each delta leads to a snapshot before it, and in the end to a full snapshot.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from exfm.interfaces.local_shards import LocalShards, StateTensor, local_boxes
from exfm.storage.delta import Delta

_ROWS, _VALUES = "#rows", "#values"
"""End the names of a tensor's changed rows: their numbers, ascending, and their values."""

SMALL_BYTES = 1 << 20
"""Tensors below are saved whole, because that is simpler and the files of a window cost as much."""

_MOST_ROWS = 0.5
"""Share of the rows of tables, changed since the full snapshot, from which on a full snapshot is hardly larger."""


class TableState(NamedTuple):
    """Holds tensors to save.

    Attributes:
        tensors: by name.
        tables: the table of each tensor whose rows are those of a table, by the tensor's name.
    """

    tensors: Mapping[str, StateTensor]
    tables: Mapping[str, str]


Shapes = Mapping[str, Sequence[int]]


class DeltaPlan:
    """Decides for each snapshot of a model in turn whether it is full, and reduces the state of a delta.

    The decision depends on the committed windows alone: a window that is repeated after a crash writes equal files.

    Args:
        full_every: distance between two full snapshots, in snapshots.
    """

    def __init__(self, full_every: int) -> None:
        self._full_every = full_every
        self._newest: int | None = None
        self._before = Delta(-1, 0, 0)
        self._shapes: Shapes = {}

    def go_on_from(self, version: int, delta: Delta | None, shapes: Shapes) -> None:
        """Makes a snapshot the newest, which the model has been saved as or loaded from.

        Args:
            delta: of the snapshot; None if it is full.
            shapes: of its tensors.
        """
        self._newest, self._before, self._shapes = version, delta or Delta(-1, 0, 0), shapes

    def next(
        self, version: int, states: Sequence[TableState], changed: Mapping[str, Tensor]
    ) -> tuple[list[dict[str, StateTensor]], Delta | None]:
        """Returns the tensors of each state to save in the next snapshot, and its delta; None if it is full.

        Args:
            version: of the snapshot.
            states: whose tensors have different names.
            changed: the rows that may have changed since the newest snapshot, ascending, by table; without tables of
                which that is not known. Equal on every process, as what is saved depends on it.
        """
        sizes: dict[str, int] = {}
        shapes: dict[str, Sequence[int]] = {}
        for state in states:
            for name, tensor in state.tensors.items():
                shapes[name] = tuple(tensor.shape)
                if self._is_reducible(name, tensor, state.tables, changed):
                    sizes[state.tables[name]] = tensor.shape[0]
        rows = self._before.rows + sum(changed[table].numel() for table in sizes)
        delta: Delta | None = None
        if sizes and self._before.number + 1 < self._full_every and rows <= _MOST_ROWS * sum(sizes.values()):
            assert self._newest is not None
            delta = Delta(self._newest, self._before.number + 1, rows)
        saved: list[dict[str, StateTensor]] = []
        for state in states:
            saved.append(dict(state.tensors) if delta is None else self._reduce(state, changed))
        self.go_on_from(version, delta, shapes)
        return saved, delta

    def _is_reducible(
        self, name: str, tensor: StateTensor, tables: Mapping[str, str], changed: Mapping[str, Tensor]
    ) -> bool:
        """Tells whether the changed rows of a tensor are enough, and less than the tensor."""
        # The exact type, because tensors that torch shards cannot be indexed by rows.
        if tables.get(name) not in changed or type(tensor) not in (Tensor, nn.Parameter, LocalShards):
            return False
        # A table that has grown since the newest snapshot has rows that it does not have.
        if tuple(self._shapes.get(name, ())) != tuple(tensor.shape):
            return False
        return math.prod(tensor.shape) * tensor.dtype.itemsize >= SMALL_BYTES

    @torch.no_grad()
    def _reduce(self, state: TableState, changed: Mapping[str, Tensor]) -> dict[str, StateTensor]:
        reduced: dict[str, StateTensor] = {}
        for name, tensor in state.tensors.items():
            if self._is_reducible(name, tensor, state.tables, changed):
                rows = changed[state.tables[name]]
                reduced[f"{name}{_ROWS}"] = rows
                reduced[f"{name}{_VALUES}"] = _values(tensor, rows)
            else:
                reduced[name] = tensor
        return reduced


def _values(tensor: StateTensor, rows: Tensor) -> StateTensor:
    """Returns rows (N,), ascending, of a tensor: whole, or of a sharded tensor the boxes of this process."""
    if isinstance(tensor, Tensor):
        return tensor.detach()[rows.to(tensor.device)]
    shape = (rows.numel(), *tensor.shape[1:])
    if not rows.numel():
        return torch.zeros(shape, dtype=tensor.dtype)
    boxes: dict[tuple[int, ...], Tensor] = {}
    for (start, *columns), box in local_boxes(tensor).items():
        # Ascending, so that the rows of a box follow each other among the changed rows.
        first, end = torch.searchsorted(rows, torch.tensor([start, start + box.shape[0]])).tolist()
        if first < end:
            boxes[first, *columns] = box[(rows[first:end] - start).to(box.device)]
    return LocalShards(shape, tensor.dtype, boxes)


def reduced_names(names: Iterable[str]) -> list[str]:
    """Returns the tensors of which a delta has some rows, by the names of all that it has."""
    return [name.removesuffix(_ROWS) for name in names if name.endswith(_ROWS)]


def names_of_rows(name: str) -> tuple[str, str]:
    """Returns the names of the numbers and of the values of a tensor's changed rows."""
    return f"{name}{_ROWS}", f"{name}{_VALUES}"


def tensor_of(name: str) -> str:
    """Returns the tensor that a saved entry belongs to."""
    return name.removesuffix(_ROWS).removesuffix(_VALUES)
