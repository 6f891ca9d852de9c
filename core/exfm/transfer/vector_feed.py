"""Updates a student's tables of teacher vectors along the stream, causally.

Legend: L rows of a chunk that the student sees, V ids of a feature, K width of a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from exfm.mappings import add_prefix
from exfm.modeling.vector_table import HistoryTable, VectorOverride, VectorTable
from exfm.supervision.joiner import STATE
from exfm.transfer.chunk_vectors import ChunkVectors, feature_of
from exfm.transfer.pending_vectors import PendingVectors

Column = tuple[str, str]
"""Names a teacher, and a column of its stored vectors: ``state_ENTITY`` or ``row_FEATURE``."""


@dataclass(frozen=True)
class FedTable:
    """Holds a table of teacher vectors and the columns that fill it.

    Attributes:
        teacher: the teacher's name.
        columns: the columns in order; where two columns have a vector of the same row in a chunk, the later column's is
            stored.
        table: the table.
        is_projected: whether a strategy adds projected vectors of the table to rows.
    """

    teacher: str
    columns: tuple[str, ...]
    table: VectorTable
    is_projected: bool = False


@dataclass(frozen=True)
class _ChunkColumn:
    """Holds the vectors of a column in a chunk.

    Attributes:
        vectors: the vectors in flight from earlier chunks, then those of the chunk.
        row_V: the table row of each of the student's ids.
        ids_L1: the number of the student's ids before each of its rows, and of all; None where each row has an id.
        override: the newest vectors that the example of each id may read.
    """

    vectors: PendingVectors
    row_V: Tensor
    ids_L1: npt.NDArray[np.int64] | None
    override: VectorOverride

    def ids(self, rows: slice) -> slice:
        """Returns the slice of the V ids of a slice of the L rows."""
        if self.ids_L1 is None:
            return rows
        return slice(int(self.ids_L1[rows.start]), int(self.ids_L1[rows.stop]))


@dataclass(frozen=True)
class _Reader:
    """Reads a column of a chunk through a table.

    Attributes:
        feature: the feature by whose ids the table is read.
        vector_VK: the vectors of the student's ids, where strategies project them.
    """

    table: VectorTable
    feature: str
    column: _ChunkColumn
    vector_VK: Tensor | None


class VectorFeed:
    """Feeds teacher vectors to a student's tables, in step with the rows of the stream that the student sees.

    A state of an example was computed before the teacher learned from the example, so a student may read it from its
    next example on. A table's row was stored after the teacher's step on a whole batch, so the student may read it
    after that batch. With a lag, the student reads either only when so much of the stream's time has passed: vectors
    that not all examples of the next chunk may read stay in flight. Each example reads the newest vectors before it
    through overrides, and the tables store the vectors that all later examples may read.

    The bookkeeping is done once per teacher and column, however many tables read the column. Students of a job do not
    share their tables, because after an interruption they may be at different windows; they share ``ChunkVectors``.

    Args:
        tables: the student's tables of teacher vectors.
        lags_us: how long a teacher's vectors are in flight, by teacher.
    """

    def __init__(self, tables: Iterable[FedTable], lags_us: Mapping[str, int]) -> None:
        self._tables = tuple(tables)
        self._lags_us = lags_us
        self._read = tuple(dict.fromkeys((fed.teacher, column) for fed in self._tables for column in fed.columns))
        # The longest history of any table that reads a column: shorter tables read its first vectors.
        self._lengths: dict[Column, int] = {}
        for fed in self._tables:
            for column in fed.columns:
                key = (fed.teacher, column)
                self._lengths[key] = max(self._lengths.get(key, 0), fed.table.length)
        self._in_flight: dict[Column, PendingVectors] = {}
        self._chunk: dict[Column, _ChunkColumn] = {}
        self._readers: list[_Reader] = []
        self._end_us = 0

    def clear(self) -> None:
        """Drops all vectors in flight, because the stream begins anew."""
        self._in_flight = {}

    def begin(self) -> None:
        """Starts a window and drops rows in flight, because the tables of rows are filled from a newer snapshot."""
        # States have no snapshot to be filled from, so that theirs stay in flight.
        self._in_flight = {key: pending for key, pending in self._in_flight.items() if key[1].startswith(STATE)}

    def open(self, chunk: ChunkVectors, seen_L: Tensor) -> None:
        """Starts a chunk.

        Args:
            chunk: the stored vectors of the chunk.
            seen_L: index of the rows that the student sees among this process's rows of the chunk, ascending.
        """
        self._end_us = chunk.end_us
        self._chunk = {}
        for teacher, column in self._read:
            stored, pending = chunk.vectors(teacher, column), self._in_flight.get((teacher, column))
            if stored is not None and pending is not None:
                stored = pending.followed_by(stored)
            # A chunk without stored vectors may still read those of earlier chunks.
            vectors = pending if stored is None else stored
            if vectors is not None:
                self._chunk[teacher, column] = self._column(teacher, column, vectors, chunk, seen_L)
        self._look_up()

    def _column(
        self, teacher: str, column: str, vectors: PendingVectors, chunk: ChunkVectors, seen_L: Tensor
    ) -> _ChunkColumn:
        row_V, ids_L1 = chunk.rows(feature_of(column)).index_select(0, seen_L), None
        has_id_L = row_V >= 0
        if not has_id_L.all():
            row_V, seen_L = row_V[has_id_L], seen_L[has_id_L]
            ids_L1 = np.concatenate([[0], has_id_L.numpy().cumsum()])
        visible_V = vectors.count_known(
            chunk.position[seen_L], chunk.batch.event_time_us[seen_L], self._lags_us[teacher]
        )
        newest = vectors.newest(row_V, visible_V, self._lengths[teacher, column])
        return _ChunkColumn(vectors, row_V, ids_L1, newest)

    def _look_up(self) -> None:
        """Looks up the vectors that strategies project, for all batches of the chunk, during which tables stay."""
        self._readers = []
        for fed in self._tables:
            for name in fed.columns:
                column = self._chunk.get((fed.teacher, name))
                if column is not None:
                    vector_VK = None
                    if fed.is_projected:
                        vector_VK = column.override.apply(fed.table(column.row_V, "", torch.float32))
                    self._readers.append(_Reader(fed.table, feature_of(name), column, vector_VK))

    def override(self, rows: slice) -> None:
        """Sets the vectors and overrides of the next batch.

        Args:
            rows: the batch's slice of the L rows.
        """
        for reader in self._readers:
            ids = reader.column.ids(rows)
            if reader.vector_VK is not None:
                reader.table.looked_up[reader.feature] = reader.vector_VK[ids]
            if isinstance(reader.table, HistoryTable):
                reader.table.overrides[reader.feature] = reader.column.override.slice(ids)

    def close(self) -> None:
        """Ends a chunk: stores the vectors that all later examples may read, and keeps the others in flight."""
        counts = {}
        for key, column in self._chunk.items():
            until_us = torch.tensor(self._end_us - self._lags_us[key[0]])
            counts[key] = int(torch.searchsorted(column.vectors.time_us_S, until_us, right=True))
            self._in_flight.pop(key, None)
            if counts[key] < column.vectors.row_S.numel():
                self._in_flight[key] = column.vectors.after(counts[key])
        self._readers = []
        for fed in self._tables:
            fed.table.overrides, fed.table.looked_up = {}, {}
            for name in fed.columns:
                key = (fed.teacher, name)
                if key in self._chunk:
                    fed.table.store(self._chunk[key].vectors.first(counts[key]))

    def state(self) -> dict[str, Tensor]:
        """Returns the states in flight, for the next start."""
        state: dict[str, Tensor] = {}
        for (teacher, column), pending in self._in_flight.items():
            if column.startswith(STATE) and pending.row_S.numel():
                # float32, which vectors of any stored form fit in.
                tensors = {"row": pending.row_S, "time_us": pending.time_us_S, "vector": pending.vector_SK.float()}
                state |= add_prefix(f"{teacher}.{column}.", tensors)
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the result of ``state``."""
        self._in_flight = {}
        for name, row_S in state.items():
            key, _, kind = name.rpartition(".")
            if kind == "row":
                teacher, _, column = key.partition(".")
                times, vectors = state[f"{key}.time_us"], state[f"{key}.vector"]
                self._in_flight[teacher, column] = PendingVectors(row_S, torch.full_like(row_S, -1), times, vectors)
