"""Looks up the vectors that teachers have stored for a chunk of the stream, once for all students of a job.

Legend: B rows of this process in the chunk, S vectors of a column, K width of a vector, R processes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.distributed.chunk_exchange import ShardedChunk
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.supervision.joiner import ROW, STATE, Joiner, Stored
from exfm.transfer.pending_vectors import PendingVectors


class ChunkVectors:
    """Looks up the stored vectors of a chunk when a student first asks for them.

    Of several processes each looks up its rows of the chunk, and gathers the vectors of all, because an example of one
    process may follow another process's example of the same user or item. All ask for the same columns in the same
    order, because the look-up is then a collective.

    Args:
        batch: the rows of this process.
        teachers: the teachers' stored output, by name; a teacher may be added until it is asked for.
        chunk: this process's shard of the chunk; None where the rows are the whole chunk.
    """

    def __init__(self, batch: Batch, teachers: Mapping[str, Joiner], chunk: ShardedChunk | None = None) -> None:
        self.batch = batch
        self._teachers = teachers
        self._stored: dict[str, Stored] = {}
        self._vectors: dict[tuple[str, str], PendingVectors | None] = {}
        self._rows: dict[str, Tensor] = {}
        self._last_of_batch: dict[str, Tensor] = {}
        self._process_group = SINGLE_PROCESS if chunk is None else chunk.process_group
        # The positions of the rows in the whole chunk.
        self.position = torch.arange(batch.size) if chunk is None else chunk.position
        self.end_us = int(batch.event_time_us[-1]) if chunk is None else chunk.last_us

    def vectors(self, teacher: str, column: str) -> PendingVectors | None:
        """Returns a teacher's vectors of the chunk; None where it has stored no such column."""
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

    def _look_up(self, teacher: str, column: str) -> PendingVectors | None:
        """Assigns each vector the position in the chunk after which a student may read it."""
        stored = self._stored_by(teacher)
        vector_SK = stored.vectors.get(column)
        row_S, position_S, time_us_S = self.rows(feature_of(column)), self.position, self.batch.event_time_us
        watermark_us_S = stored.watermark_us
        if watermark_us_S.numel() < row_S.numel():
            has_row = stored.has_row
            row_S, position_S, time_us_S = row_S[has_row], position_S[has_row], time_us_S[has_row]
        if self._process_group.world_size > 1:
            numbers_S4 = torch.stack([row_S, position_S, time_us_S, watermark_us_S], dim=1)
            gathered = _gather(numbers_S4, vector_SK, self._process_group)
            if gathered is None:
                return None
            numbers_S4, vector_SK = gathered
            row_S, position_S, time_us_S, watermark_us_S = numbers_S4.T.contiguous().unbind(0)
        if vector_SK is None:
            return None
        # A table's row is stored after the teacher's step on a whole batch, which has read all labels of the batch.
        if column.startswith(ROW):
            if teacher not in self._last_of_batch:
                self._last_of_batch[teacher] = _last_of_batch(watermark_us_S)
            last_S = self._last_of_batch[teacher]
            position_S, time_us_S = position_S[last_S], time_us_S[last_S]
        has_id_S = row_S >= 0
        if not has_id_S.all():
            row_S, position_S, time_us_S = row_S[has_id_S], position_S[has_id_S], time_us_S[has_id_S]
            vector_SK = vector_SK.index_select(0, has_id_S.nonzero().squeeze(1))
        return PendingVectors(row_S, position_S, time_us_S, vector_SK)


def _gather(numbers_S4: Tensor, vector_SK: Tensor | None, process_group: ProcessGroup) -> tuple[Tensor, Tensor] | None:
    """Gathers the vectors of all processes, in the order of their positions; None where no process has the column.

    A process without rows of a teacher knows neither that the teacher stores the column nor its width.

    Args:
        numbers_S4: int64: table row, position, time and watermark of each vector.
    """
    width = 0 if vector_SK is None else vector_SK.shape[1]
    size = 0 if vector_SK is None else numbers_S4.shape[0]
    sizes_R2 = process_group.all_gather(torch.tensor([size, width]))
    width = int(sizes_R2[:, 1].max())
    if not width:
        return None
    if vector_SK is None:
        vector_SK = torch.zeros(0, width)
    # float32, because a process without the column does not know its form.
    vector_SK = vector_SK.float()
    counts = sizes_R2[:, 0].tolist()
    numbers_S4 = process_group.all_gather_rows(numbers_S4[:size], counts)
    vector_SK = process_group.all_gather_rows(vector_SK, counts)
    order_S = numbers_S4[:, 1].argsort()
    return numbers_S4[order_S], vector_SK[order_S]


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
