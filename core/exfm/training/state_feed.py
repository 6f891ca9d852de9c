"""Tells a student of its teachers' states and rows along a chunk, never of what it still has to predict.

Legend: B rows of the chunk, S rows that a teacher has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.interfaces.transfer_strategy import EntityStates, TableRows, TransferStrategy
from exfm.modeling.lookups import StateLookups
from exfm.supervision.joiner import ROW, STATE, Joiner


@dataclass(frozen=True)
class Listener:
    """What of a student is told of a teacher.

    Attributes:
        observe: is told of its states, where they are wanted.
        follow: is told of its rows, where they are wanted.
    """

    teacher: str
    observe: Callable[[Mapping[str, EntityStates]], None] | None
    follow: Callable[[Mapping[str, TableRows]], None] | None


def listeners(strategies: Iterable[TransferStrategy], lookups: StateLookups | None) -> list[Listener]:
    """The strategies that read states or parts of their teachers, and the lookups."""
    found = [
        Listener(
            strategy.config.teacher,
            strategy.observe if strategy.reads_states else None,
            strategy.follow if strategy.reads_parts else None,
        )
        for strategy in strategies
        if strategy.reads_states or strategy.reads_parts
    ]
    observers = lookups.observers() if lookups is not None else {}
    return found + [Listener(teacher, observe, None) for teacher, observe in observers.items()]


@dataclass(frozen=True)
class _Column:
    """Vectors of one column that a listener is told of, in the order of the chunk.

    Attributes:
        name: the entity of a state; the part of a row.
        place_S: the row of the chunk that the student must have reached; never decreasing.
        row_S: the table row that each is of.
        vector_SK: the vectors.
    """

    name: str
    place_S: Tensor
    row_S: Tensor
    vector_SK: Tensor

    def between(self, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Table rows and vectors of those with ``first <= place < end``."""
        start, stop = torch.searchsorted(self.place_S, torch.tensor([first, end])).tolist()
        return self.row_S[start:stop], self.vector_SK[start:stop]


@dataclass(frozen=True)
class _Told:
    """What one listener is told of a chunk."""

    listener: Listener
    states: list[_Column]
    rows: list[_Column]


class StateFeed:
    """Goes along the rows of a chunk, whichever of them the student sees.

    A state of an example was made before the teacher learned from it, so a student may know it from its next example
    on. A table's row is from after the teacher's step on a whole batch: the student may know it where it has come past
    that batch.

    Args:
        batch: the whole chunk.
        listeners: the student's.
        teachers: by name; of a teacher that stores neither nothing is told.
        tables: the table of each categorical feature.
    """

    def __init__(
        self,
        batch: Batch,
        listeners: Iterable[Listener],
        teachers: Mapping[str, Joiner],
        tables: Mapping[str, str],
    ) -> None:
        self._batch = batch
        self._tables = tables
        self._next = 0
        self._told = [self._prepare(listener, teachers[listener.teacher]) for listener in listeners]

    def tell(self, end: int) -> None:
        """Tells of the rows of the chunk before ``end`` that have not been told of."""
        for told in self._told:
            states = {column.name: EntityStates(*column.between(self._next, end)) for column in told.states}
            rows = {column.name: TableRows(*column.between(self._next, end)) for column in told.rows}
            if told.listener.observe is not None and any(state.row.numel() for state in states.values()):
                told.listener.observe(states)
            if told.listener.follow is not None and any(row.row.numel() for row in rows.values()):
                told.listener.follow(rows)
        self._next = end

    def _prepare(self, listener: Listener, teacher: Joiner) -> _Told:
        stored = teacher.stored(self._batch.example_id, self._batch.event_time_us)
        place_S = stored.found.nonzero().squeeze(1)
        states, rows = [], []
        for column, vector_SK in stored.vectors.items():
            if listener.observe is not None and column.startswith(STATE):
                entity = column.removeprefix(STATE)
                states.append(self._column(entity, entity, place_S, stored.found, vector_SK))
            elif listener.follow is not None and column.startswith(ROW):
                feature = column.removeprefix(ROW)
                last_S = place_S[_last_of_batch(stored.watermark_us)]
                rows.append(self._column(f"table/{self._tables[feature]}", feature, last_S, stored.found, vector_SK))
        return _Told(listener, states, rows)

    def _column(self, name: str, feature: str, place_S: Tensor, found_B: Tensor, vector_SK: Tensor) -> _Column:
        row_S = _rows(self._batch, feature)[found_B]
        there_S = row_S >= 0
        return _Column(name, place_S[there_S], row_S[there_S], vector_SK[there_S])


def _last_of_batch(watermark_us: Tensor) -> Tensor:
    """For each of S rows the last one of the teacher's batch it was in: a batch has one watermark."""
    _, batch_S, count = torch.unique_consecutive(watermark_us, return_inverse=True, return_counts=True)
    last: Tensor = (count.cumsum(0) - 1)[batch_S]
    return last


def _rows(batch: Batch, feature: str) -> Tensor:
    """The table row (B,) of a categorical feature, -1 where it is missing."""
    bags = batch.sparse[feature]
    there_B = bags.lengths() > 0
    row_B = torch.full((batch.size,), -1)
    row_B[there_B] = bags.values()[bags.offsets()[:-1][there_B].long()]
    return row_B
