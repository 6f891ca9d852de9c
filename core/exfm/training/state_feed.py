"""Tells a student of its teachers' states and rows along the stream, never of what it still has to predict.

Legend: B rows of a chunk, L rows of it that the student sees, S vectors of a column, V ids of a feature, K width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.interfaces.transfer_strategy import EntityStates, Recent, TableRows, TransferStrategy
from exfm.modeling.lookups import StateLookups
from exfm.supervision.joiner import ROW, STATE, Joiner, Stored
from exfm.training.made_vectors import MadeVectors


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

    def wants(self, column: str) -> bool:
        """Whether it is told of a column of stored vectors."""
        wanted = self.observe if column.startswith(STATE) else self.follow
        return wanted is not None


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
    """A column in a chunk, and what of it is recent for each of the L rows.

    Attributes:
        feature: whose ids it is of.
        there_L: which of the L rows have an id; None where all have.
        recent: of the L rows.
    """

    feature: str
    vectors: MadeVectors
    there_L: Tensor | None
    recent: Recent

    def of(self, rows: slice) -> Recent:
        """What is recent for the ids of some of the L rows."""
        known, vector = self.recent.known_V[rows], self.recent.vector_VK[rows]
        if self.there_L is None:
            return Recent(known, vector)
        there = self.there_L[rows]
        return Recent(known[there], vector[there])


class StateFeed:
    """Goes along the rows of a stream that the student sees.

    A state of an example was made before the teacher learned from it, so a student may know it from its next example
    on. A table's row is from after the teacher's step on a whole batch: the student may know it where it has come past
    that batch. With a lag, either reaches it when so much of the stream's time has passed: what is not known at the end
    of a chunk is held. Either way each example is told what is newest before it, and what all later examples know is
    kept by the listener.

    Args:
        listeners: the student's.
        lags_us: how long a teacher's states and rows are on their way, by teacher.
        tables: the table of each categorical feature.
    """

    def __init__(self, listeners: Iterable[Listener], lags_us: Mapping[str, int], tables: Mapping[str, str]) -> None:
        self._listeners = tuple(listeners)
        self._lags_us, self._tables = lags_us, tables
        self._held: dict[tuple[str, str], MadeVectors] = {}
        self._columns: dict[tuple[str, str], _Column] = {}
        self._end_us = 0

    def begin(self) -> None:
        """Starts a window: its student has its teachers' tables as a snapshot has them, and no row is on its way."""
        self._held = {key: held for key, held in self._held.items() if key[1].startswith(STATE)}

    def open(self, batch: Batch, seen_L: Tensor, teachers: Mapping[str, Joiner]) -> None:
        """Starts a chunk.

        Args:
            batch: the whole chunk.
            seen_L: the rows of it that the student sees, ascending.
            teachers: by name; of a teacher that stores neither nothing is told.
        """
        if batch.size:  # of a short chunk a process may have no row
            self._end_us = int(batch.event_time_us[-1])
        self._columns = {}
        rows: dict[str, Tensor] = {}
        for teacher in dict.fromkeys(listener.teacher for listener in self._listeners):
            stored = teachers[teacher].stored(batch.example_id, batch.event_time_us)
            held = [column for name, column in self._held if name == teacher]
            for column in dict.fromkeys([*held, *stored.vectors]):
                if any(listener.teacher == teacher and listener.wants(column) for listener in self._listeners):
                    feature = _feature(column)
                    if feature not in rows:
                        rows[feature] = _rows(batch, feature)
                    self._columns[teacher, column] = self._column(teacher, column, batch, rows[feature], seen_L, stored)

    def recall(self, rows: slice) -> None:
        """Tells of what is newest before each of some of the L rows: those of the next batch."""
        recent = {key: column.of(rows) for key, column in self._columns.items()}
        for listener in self._listeners:
            listener.recall({self._columns[key].feature: recent[key] for key in self._told(listener)})

    def keep(self) -> None:
        """Ends a chunk: tells of what is known to all later examples."""
        count = {}
        for key, column in self._columns.items():
            vectors = column.vectors
            until = torch.tensor(self._end_us - self._lags_us[key[0]])
            count[key] = int(torch.searchsorted(vectors.time_us_S, until, right=True))
            self._held[key] = vectors.after(count[key])
        for listener in self._listeners:
            listener.recall({})
            told = {key: self._columns[key].vectors.first(count[key]) for key in self._told(listener)}
            states = {key[1].removeprefix(STATE): one for key, one in told.items() if key[1].startswith(STATE)}
            rows = {self._part(key[1]): one for key, one in told.items() if key[1].startswith(ROW)}
            if listener.observe is not None and states:
                listener.observe({entity: EntityStates(*one) for entity, one in states.items()})
            if listener.follow is not None and rows:
                listener.follow({part: TableRows(*one) for part, one in rows.items()})

    def state(self) -> dict[str, Tensor]:
        """What is on its way, for the next start."""
        state: dict[str, Tensor] = {}
        for (teacher, column), held in self._held.items():
            if column.startswith(STATE) and held.row_S.numel():
                parts = {"row": held.row_S, "time_us": held.time_us_S, "vector": held.vector_SK}
                state |= {f"{teacher}.{column}.{name}": value for name, value in parts.items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``state`` gave."""
        self._held = {}
        for name, row_S in state.items():
            key, _, part = name.rpartition(".")
            if part == "row":
                teacher, _, column = key.partition(".")
                times, vectors = state[f"{key}.time_us"], state[f"{key}.vector"]
                self._held[teacher, column] = MadeVectors(row_S, torch.full_like(row_S, -1), times, vectors)

    def _told(self, listener: Listener) -> Iterator[tuple[str, str]]:
        return (key for key in self._columns if key[0] == listener.teacher and listener.wants(key[1]))

    def _part(self, column: str) -> str:
        return f"table/{self._tables[column.removeprefix(ROW)]}"

    def _column(
        self, teacher: str, column: str, batch: Batch, row_B: Tensor, seen_L: Tensor, stored: Stored
    ) -> _Column:
        held, made = self._held.get((teacher, column)), stored.vectors.get(column)
        new = None if made is None else _made(column, row_B, batch.event_time_us, stored, made)
        vectors = new if held is None else held if new is None else held.followed_by(new)
        assert vectors is not None
        row_L = row_B[seen_L]
        there_L = row_L >= 0
        known_L = vectors.known(seen_L, batch.event_time_us[seen_L], self._lags_us[teacher])
        recent = vectors.newest(row_L, known_L)
        return _Column(_feature(column), vectors, None if there_L.all() else there_L, recent)


def _made(column: str, row_B: Tensor, time_us_B: Tensor, stored: Stored, vector_SK: Tensor) -> MadeVectors:
    """What a teacher has stored of a chunk, each vector at the place from which on it is there."""
    place_S = stored.found.nonzero().squeeze(1)
    row_S = row_B[place_S]
    if column.startswith(ROW):
        place_S = place_S[_last_of_batch(stored.watermark_us)]
    kept_S = (row_S >= 0).nonzero().squeeze(1)
    if kept_S.numel() < row_S.numel():
        row_S, place_S, vector_SK = row_S[kept_S], place_S[kept_S], vector_SK.index_select(0, kept_S)
    return MadeVectors(row_S, place_S, time_us_B[place_S], vector_SK)


def _feature(column: str) -> str:
    """The feature whose ids a column is of."""
    return column.removeprefix(STATE if column.startswith(STATE) else ROW)


def _last_of_batch(watermark_us: Tensor) -> Tensor:
    """For each of S rows the last one of the teacher's batch it was in: a batch has one watermark."""
    _, batch_S, count = torch.unique_consecutive(watermark_us, return_inverse=True, return_counts=True)
    last: Tensor = (count.cumsum(0) - 1)[batch_S]
    return last


def _rows(batch: Batch, feature: str) -> Tensor:
    """The table row (B,) of a categorical feature, -1 where it is missing."""
    bags = batch.sparse[feature]
    if bags.values().numel() == batch.size:
        row_B: Tensor = bags.values()
        return row_B
    there_B = bags.lengths() > 0
    row_B = torch.full((batch.size,), -1)
    row_B[there_B] = bags.values()[bags.offsets()[:-1][there_B].long()]
    return row_B
