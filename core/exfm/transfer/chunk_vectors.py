"""Looks up the vectors that teachers have stored for a chunk of the stream, once for all students of a job.

Legend: B rows of the chunk, S vectors of a column, K width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.supervision.joiner import ROW, STATE, Joiner, Stored
from exfm.transfer.pending_vectors import PendingVectors


class ChunkVectors:
    """Looks up the stored vectors of a chunk when a student first asks for them.

    Args:
        batch: the whole chunk.
        teachers: the teachers' stored output, by name; a teacher may be added until it is asked for.
    """

    def __init__(self, batch: Batch, teachers: Mapping[str, Joiner]) -> None:
        self.batch = batch
        self._teachers = teachers
        self._stored: dict[str, Stored] = {}
        self._vectors: dict[tuple[str, str], PendingVectors] = {}
        self._rows: dict[str, Tensor] = {}

    @cached_property
    def end_us(self) -> int | None:
        """Returns the time of the chunk's last row; None where this process has no row of a short chunk."""
        return int(self.batch.event_time_us[-1]) if self.batch.size else None

    def columns(self, teacher: str) -> tuple[str, ...]:
        """Names the columns of vectors that a teacher has stored."""
        return tuple(self._stored_by(teacher).vectors)

    def vectors(self, teacher: str, column: str) -> PendingVectors | None:
        """Returns a teacher's vectors of the chunk; None where it has stored no such column."""
        if column not in self._stored_by(teacher).vectors:
            return None
        if (teacher, column) not in self._vectors:
            self._vectors[teacher, column] = self._look_up(teacher, column)
        return self._vectors[teacher, column]

    def rows(self, feature: str) -> Tensor:
        """Returns the table row (B,) of a categorical feature, -1 where it is missing."""
        if feature not in self._rows:
            self._rows[feature] = _rows(self.batch, feature)
        return self._rows[feature]

    def _stored_by(self, teacher: str) -> Stored:
        if teacher not in self._stored:
            batch = self.batch
            self._stored[teacher] = self._teachers[teacher].stored(batch.example_id, batch.event_time_us)
        return self._stored[teacher]

    def _look_up(self, teacher: str, column: str) -> PendingVectors:
        """Assigns each vector the position in the chunk after which a student may read it."""
        stored = self._stored_by(teacher)
        position_S, vector_SK = stored.has_row.nonzero().squeeze(1), stored.vectors[column]
        row_S = self.rows(feature_of(column))[position_S]
        # A table's row is stored after the teacher's step on a whole batch, which has read all labels of the batch.
        if column.startswith(ROW):
            position_S = position_S[_last_of_batch(stored.watermark_us)]
        kept_S = (row_S >= 0).nonzero().squeeze(1)
        if kept_S.numel() < row_S.numel():
            row_S, position_S = row_S[kept_S], position_S[kept_S]
            vector_SK = vector_SK.index_select(0, kept_S)
        return PendingVectors(row_S, position_S, self.batch.event_time_us[position_S], vector_SK)


def feature_of(column: str) -> str:
    """Names the feature by whose ids a column's vectors are looked up."""
    return column.removeprefix(STATE if column.startswith(STATE) else ROW)


def _last_of_batch(watermark_us: Tensor) -> Tensor:
    """Returns the last row of the teacher's batch of each of S rows: all rows of a batch share a watermark."""
    _, batch_S, count = torch.unique_consecutive(watermark_us, return_inverse=True, return_counts=True)
    last: Tensor = (count.cumsum(0) - 1)[batch_S]
    return last


def _rows(batch: Batch, feature: str) -> Tensor:
    """Returns the table row (B,) of a feature with at most a single id per example, -1 where it is missing."""
    bags = batch.sparse[feature]
    # As many ids as examples: no id is missing, and the values are in the order of the examples.
    if bags.values().numel() == batch.size:
        row_B: Tensor = bags.values()
        return row_B
    has_id_B = bags.lengths() > 0
    row_B = torch.full((batch.size,), -1)
    row_B[has_id_B] = bags.values()[bags.offsets()[:-1][has_id_B].long()]
    return row_B
