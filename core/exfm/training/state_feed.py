"""Tells a student of its teachers' states and rows along a chunk, never of what it still has to predict.

Legend: B rows of the chunk, L rows of it that the student sees, S rows that a teacher has, V ids of a feature, K width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.interfaces.transfer_strategy import EntityStates, Recent, TableRows, TransferStrategy
from exfm.modeling.lookups import StateLookups
from exfm.supervision.joiner import ROW, STATE, Joiner, Stored


@dataclass(frozen=True)
class Listener:
    """What of a student is told of a teacher.

    Attributes:
        recall: is told before each batch.
        observe: is told of its states, where they are wanted.
        follow: is told of its rows, where they are wanted.
    """

    teacher: str
    recall: Callable[[Mapping[str, Recent]], None]
    observe: Callable[[Mapping[str, EntityStates]], None] | None
    follow: Callable[[Mapping[str, TableRows]], None] | None


def listeners(strategies: Iterable[TransferStrategy], lookups: StateLookups | None) -> list[Listener]:
    """The strategies that read states or parts of their teachers, and the lookups."""
    found = [
        Listener(
            strategy.config.teacher,
            strategy.recall,
            strategy.observe if strategy.reads_states else None,
            strategy.follow if strategy.reads_parts else None,
        )
        for strategy in strategies
        if strategy.reads_states or strategy.reads_parts
    ]
    if lookups is not None:
        observers = lookups.observers().items()
        found += [Listener(teacher, partial(lookups.recall, teacher), one, None) for teacher, one in observers]
    return found


@dataclass(frozen=True)
class _Column:
    """Vectors of one column, in the order of the chunk, and which of them is the newest before each of L rows.

    Attributes:
        name: the entity of a state; the part of a row.
        feature: whose ids they are of.
        row_S: the table row that each is of.
        vector_SK: the vectors.
        there_L: which of the L rows have an id; None where all have.
        recent: of the L rows.
    """

    name: str
    feature: str
    row_S: Tensor
    vector_SK: Tensor
    there_L: Tensor | None
    recent: Recent

    def of(self, rows: slice) -> Recent:
        """What is recent for the ids of some of the L rows."""
        known, vector = self.recent.known_V[rows], self.recent.vector_VK[rows]
        if self.there_L is None:
            return Recent(known, vector)
        there = self.there_L[rows]
        return Recent(known[there], vector[there])


@dataclass(frozen=True)
class _Told:
    """What one listener is told of a chunk."""

    listener: Listener
    states: Sequence[_Column]
    rows: Sequence[_Column]


class StateFeed:
    """Goes along the rows of a chunk that the student sees.

    A state of an example was made before the teacher learned from it, so a student may know it from its next example
    on. A table's row is from after the teacher's step on a whole batch: the student may know it where it has come past
    that batch. Either way each example is told what is newest before it, and after the chunk the newest of all is kept.

    Args:
        batch: the whole chunk.
        seen_L: the rows of it that the student sees, ascending.
        listeners: the student's.
        teachers: by name; of a teacher that stores neither nothing is told.
        tables: the table of each categorical feature.
    """

    def __init__(
        self,
        batch: Batch,
        seen_L: Tensor,
        listeners: Iterable[Listener],
        teachers: Mapping[str, Joiner],
        tables: Mapping[str, str],
    ) -> None:
        self._batch, self._seen_L = batch, seen_L
        self._tables = tables
        listeners = tuple(listeners)
        names = dict.fromkeys(listener.teacher for listener in listeners)
        stored = {name: teachers[name].stored(batch.example_id, batch.event_time_us) for name in names}
        self._told = [self._prepare(listener, stored[listener.teacher]) for listener in listeners]

    def recall(self, rows: slice) -> None:
        """Tells of what is newest before each of some of the L rows: those of the next batch."""
        for told in self._told:
            told.listener.recall({column.feature: column.of(rows) for column in (*told.states, *told.rows)})

    def keep(self) -> None:
        """Tells of the whole chunk, when its last batch is done."""
        for told in self._told:
            told.listener.recall({})
            if told.listener.observe is not None and told.states:
                told.listener.observe({one.name: EntityStates(one.row_S, one.vector_SK) for one in told.states})
            if told.listener.follow is not None and told.rows:
                told.listener.follow({one.name: TableRows(one.row_S, one.vector_SK) for one in told.rows})

    def _prepare(self, listener: Listener, stored: Stored) -> _Told:
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
        row_B = _rows(self._batch, feature)
        row_S = row_B[found_B]
        kept_S = row_S >= 0
        row_S, place_S, vector_SK = row_S[kept_S], place_S[kept_S], vector_SK[kept_S]
        row_L = row_B[self._seen_L]
        there_L = row_L >= 0
        recent = _newest_before(row_S, place_S, vector_SK, row_L, self._seen_L, self._batch.size)
        return _Column(name, feature, row_S, vector_SK, None if there_L.all() else there_L, recent)


def _newest_before(
    row_S: Tensor, place_S: Tensor, vector_SK: Tensor, row_L: Tensor, place_L: Tensor, size: int
) -> Recent:
    """For each of L rows of a chunk of ``size``, the last of the S vectors of its table row and of an earlier place."""
    if not row_S.numel():
        return Recent(torch.zeros_like(row_L, dtype=torch.bool), vector_SK.new_zeros(row_L.numel(), vector_SK.shape[1]))
    ordered_S, order_S = torch.sort(row_S * size + place_S, stable=True)
    found_L = (torch.searchsorted(ordered_S, row_L * size + place_L) - 1).clamp(min=0)
    newest_L = order_S[found_L]
    known_L = (row_S[newest_L] == row_L) & (place_S[newest_L] < place_L)
    return Recent(known_L, vector_SK[newest_L])


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
