"""Joins supervision to batches by example id, vectorised; misses are masked.

Legend: S supervised rows, B examples of a batch, K of them that have a row, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from exfm.data.label_columns import PREDICTION, columns_by_task
from exfm.interfaces.distillation_strategy import TeacherOutput
from exfm.mappings import map_values, take_rows
from exfm.supervision.embeddings import CompactEmbedding
from exfm.supervision.id_search import search
from exfm.supervision.row_files import scale_column

STATE, ROW = "state_", "row_"
"""Prefixes of the columns of an entity's compact state, and of a feature's table row."""


RowIndex = Tensor | slice
"""Positions of rows, or a slice of them."""


@dataclass(frozen=True)
class Joined:
    """Holds supervision aligned with B examples.

    Attributes:
        supervision: the teacher's output; an example without a row is a miss.
        has_row: (B,) bool, whether the teacher has a row of the example.
        age_us: (K,) example time minus watermark, for examples with a row; None if the rows have no watermark.
    """

    supervision: TeacherOutput
    has_row: Tensor
    age_us: Tensor | None

    def hits(self, tasks: Collection[str] = ()) -> Tensor:
        """Masks the examples (B,) with a finite prediction of a named task, or of any task if none is named."""
        masks = [hit_B for task, hit_B in self.supervision.hit.items() if task in tasks or not tasks]
        return torch.stack(masks).any(dim=0) if masks else torch.zeros_like(self.has_row)


@dataclass(frozen=True)
class Stored:
    """Holds vectors that a teacher has stored beside its predictions, for S of B examples.

    Attributes:
        has_row: (B,) bool, mask of the S examples, which have a row with a prediction.
        watermark_us: (S,) int64, time before which the teacher had trained when it predicted the example.
        vectors: (S, K) by column, float16 where they are stored so, and else float32.
    """

    has_row: Tensor
    watermark_us: Tensor
    vectors: Mapping[str, Tensor]


class Joiner(Protocol):
    """Looks up a teacher's supervision, independent of its source."""

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """Returns the supervision of B examples; an example without a row is a miss."""
        ...

    def stored(self, example_id: Tensor, event_time_us: Tensor) -> Stored:
        """Returns the stored vectors of B examples."""
        ...


@dataclass(frozen=True)
class SupervisionRows:
    """Holds a teacher's supervision of S examples, in the order of the stream.

    Attributes:
        example_id: (S,) int64.
        event_time_us: (S,) int64, never decreasing.
        probabilities: predictions, (S,) or (S, C) float32 by task; NaN where the teacher had not seen a label of the
            task yet.
        watermark_us: (S,) int64: the teacher had trained on examples before this time only.
        embedding: of S rows, where the teacher gives any.
        vectors: of S rows by column: ``state_ENTITY``, and ``row_FEATURE``, which is from after training.
    """

    example_id: Tensor
    event_time_us: Tensor
    probabilities: Mapping[str, Tensor]
    watermark_us: Tensor
    embedding: CompactEmbedding | None = None
    vectors: Mapping[str, CompactEmbedding] = field(default_factory=dict)

    @classmethod
    def from_arrow(cls, rows: pa.RecordBatch) -> SupervisionRows:
        """Reads the rows of a supervision file, which share its memory if no value is null."""
        names = rows.schema.names
        probabilities: dict[str, Tensor] = {}
        for task, columns in columns_by_task(names).items():
            tensors = [_tensor(rows.column(column)) for column in columns]
            is_single = columns == [f"{PREDICTION}{task}"]
            probabilities[task] = tensors[0] if is_single else torch.stack(tensors, dim=1)
        return cls(
            _tensor(rows.column("example_id")),
            _tensor(rows.column("event_time").view(pa.int64())),
            probabilities,
            _tensor(rows.column("watermark").view(pa.int64())),
            _compact(rows, "embedding") if "embedding" in names else None,
            {name: _compact(rows, name) for name in names if name.startswith((STATE, ROW))},
        )

    @classmethod
    def cat(cls, tables: Sequence[SupervisionRows]) -> SupervisionRows:
        """Concatenates at least 1 table of rows with equal tasks."""
        if len(tables) == 1:
            return tables[0]
        probabilities: dict[str, Tensor] = {}
        for task in tables[0].probabilities:
            probabilities[task] = torch.cat([table.probabilities[task] for table in tables])
        vectors: dict[str, CompactEmbedding] = {}
        for column in tables[0].vectors:
            vectors[column] = CompactEmbedding.cat([table.vectors[column] for table in tables])
        embeddings = [table.embedding for table in tables if table.embedding is not None]
        return cls(
            torch.cat([table.example_id for table in tables]),
            torch.cat([table.event_time_us for table in tables]),
            probabilities,
            torch.cat([table.watermark_us for table in tables]),
            CompactEmbedding.cat(embeddings) if embeddings else None,
            vectors,
        )

    def slice(self, start: int, stop: int) -> SupervisionRows:
        """Returns consecutive rows without copying them."""
        return self.take(slice(start, stop))

    def take(self, rows: RowIndex) -> SupervisionRows:
        """Returns the rows of a slice, without copying them, or of positions."""
        return SupervisionRows(
            self.example_id[rows],
            self.event_time_us[rows],
            take_rows(self.probabilities, rows),
            self.watermark_us[rows],
            None if self.embedding is None else self.embedding.take(rows),
            {column: vector.take(rows) for column, vector in self.vectors.items()},
        )

    def index(self) -> SupervisionIndex:
        """Creates an index of the rows, for joining."""
        return SupervisionIndex(self)


class SupervisionIndex:
    """Looks up rows of distinct examples by time and example id."""

    def __init__(self, rows: SupervisionRows) -> None:
        self.rows = rows

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """Returns the supervision of B examples; an example without a row is a miss."""
        rows = self.rows
        # The fast path of a student that sees every example of the teacher: no search and no copy of the rows.
        if torch.equal(example_id, rows.example_id):
            has_row = torch.ones_like(example_id, dtype=torch.bool)
            age_us = event_time_us - rows.watermark_us
            output = align(rows.probabilities, rows.embedding, has_row)
            return Joined(replace(output, age_s=_seconds(age_us)), has_row, age_us)
        if not rows.example_id.numel():
            has_row = torch.zeros_like(example_id, dtype=torch.bool)
            width = None if rows.embedding is None else rows.embedding.values_SE.shape[1]
            misses = miss(rows.probabilities, has_row.shape[0], width, rows.probabilities)
            no_age = torch.zeros(0, dtype=torch.int64)
            return Joined(replace(misses, age_s=torch.zeros(has_row.shape[0])), has_row, no_age)
        row, has_row = self._locate(example_id, event_time_us)
        picked = take_rows(rows.probabilities, row)
        embedding = None if rows.embedding is None else rows.embedding.take(row)
        age_us = event_time_us - rows.watermark_us[row]
        output = replace(align(picked, embedding, has_row), age_s=_seconds(age_us))
        if not has_row.all():
            age_us = age_us[has_row]
        return Joined(output, has_row, age_us)

    def stored(self, example_id: Tensor, event_time_us: Tensor) -> Stored:
        """Returns the stored vectors of B examples."""
        if not self.rows.example_id.numel():
            return nothing_stored(example_id)
        row, has_row = self._locate(example_id, event_time_us)
        # A row of NaN predictions was written before the teacher had learned: its vectors are initial weights.
        is_finite_S = torch.stack([_are_finite(values) for values in self.rows.probabilities.values()]).any(dim=0)
        has_row = has_row & is_finite_S[row]
        index_S = row[has_row]
        kept: RowIndex = index_S
        # All rows, in their order, are not copied: a teacher in the same job has just the rows of the chunk.
        if index_S.numel() == is_finite_S.numel() and torch.equal(example_id, self.rows.example_id):
            kept = slice(None)
        vectors = {column: _numbers(vector.take(kept)) for column, vector in self.rows.vectors.items()}
        return Stored(has_row, self.rows.watermark_us[kept], vectors)

    def _locate(self, example_id: Tensor, event_time_us: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the row (B,) of each example and a mask of existing rows, by time, and by id if rows share a time."""
        rows = self.rows
        if torch.equal(example_id, rows.example_id):
            return torch.arange(example_id.numel()), torch.ones_like(example_id, dtype=torch.bool)
        # Both sides are sorted by time, which makes numpy's search fast: a tenth of the cost of sorting ids.
        index_B = np.searchsorted(rows.event_time_us.numpy(), event_time_us.numpy())
        row = torch.from_numpy(index_B).clamp_(max=rows.event_time_us.numel() - 1)
        has_row = rows.example_id[row] == example_id
        if has_row.all():
            return row, has_row
        # The search returns the first row of a time, so that examples that share a time are searched by id.
        shared = ~has_row & (rows.event_time_us[row] == event_time_us)
        if shared.any():
            sorted_id, order = self._sorted
            index, has_row[shared] = lookup(sorted_id, example_id[shared])
            row[shared] = order[index]
        return row, has_row

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Returns the sorted ids, and the row of each."""
        # Numpy sorts several times faster than torch.
        order = np.argsort(self.rows.example_id.numpy())
        return self.rows.example_id[order], torch.from_numpy(order)


def lookup(sorted_id: Tensor, example_id: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the index (B,) of each example among at least 1 sorted id, and a mask of the ids that exist.

    The index of an id that does not exist has no meaning.
    """
    index_B, exists_B = search(sorted_id.numpy(), example_id.numpy())
    return torch.from_numpy(index_B), torch.from_numpy(exists_B)


def align(probabilities: Mapping[str, Tensor], embedding: CompactEmbedding | None, has_row: Tensor) -> TeacherOutput:
    """Masks the supervision of B examples: values where ``has_row`` is false have no meaning."""
    hit = {task: has_row & _are_finite(values) for task, values in probabilities.items()}
    # Finite at misses too, because a masked NaN still makes the gradient of a product NaN.
    finite = {task: values.nan_to_num(0.0, 0.0, 0.0) for task, values in probabilities.items()}
    if embedding is None:
        return TeacherOutput(finite, hit)
    learned_B = torch.stack(list(hit.values())).any(dim=0)
    decoded_BE = embedding.decode()
    if not learned_B.all():
        # In place, because ``decode`` returns new memory.
        decoded_BE.masked_fill_(~learned_B.unsqueeze(1), 0.0)
    return TeacherOutput(finite, hit, decoded_BE)


def slice_output(supervision: TeacherOutput, rows: slice) -> TeacherOutput:
    """Slices the examples of a teacher's output."""
    return TeacherOutput(
        take_rows(supervision.probabilities, rows),
        take_rows(supervision.hit, rows),
        None if supervision.embedding is None else supervision.embedding[rows],
        None if supervision.age_s is None else supervision.age_s[rows],
    )


def embedding_input(supervision: TeacherOutput) -> Tensor:
    """Returns a teacher's embedding (B, E) of each example as a model reads it: NaN where the teacher has none."""
    assert supervision.embedding is not None  # checked with the experiment: the teacher stores it
    hit_B = torch.stack(list(supervision.hit.values())).any(dim=0)
    return supervision.embedding.masked_fill(~hit_B.unsqueeze(1), torch.nan)


def nothing_stored(example_id: Tensor) -> Stored:
    """Returns the result for B examples of which a teacher has stored no vectors."""
    return Stored(torch.zeros_like(example_id, dtype=torch.bool), example_id[:0], {})


def miss(
    tasks: Iterable[str], size: int, embedding_dim: int | None = None, like: Mapping[str, Tensor] | None = None
) -> TeacherOutput:
    """Returns the supervision of ``size`` examples that are all misses.

    Args:
        like: predictions of other examples, by task, whose shape those of a task have; (size,) by default.
    """
    shapes = map_values(lambda values: values.shape[1:], like or {})
    nothing = {task: torch.zeros(size, *shapes.get(task, ())) for task in tasks}
    embedding_BE = None if embedding_dim is None else torch.zeros(size, embedding_dim)
    return TeacherOutput(nothing, dict.fromkeys(nothing, torch.zeros(size, dtype=torch.bool)), embedding_BE)


def _numbers(vectors: CompactEmbedding) -> Tensor:
    """Returns vectors as numbers: float16 as it is stored, because most of a chunk's vectors are never read."""
    return vectors.values_SE if vectors.scale_S is None else vectors.decode()


def _are_finite(values: Tensor) -> Tensor:
    """Marks the rows (S,) of predictions, (S,) or (S, C), that are finite."""
    return values.isfinite() if values.dim() == 1 else values.isfinite().all(dim=1)


def _seconds(age_us: Tensor) -> Tensor:
    """Converts ages to float32; ages of misses are those of other rows, and may be negative."""
    return age_us.clamp(min=0).float() / 1e6


def _compact(rows: pa.RecordBatch, column: str) -> CompactEmbedding:
    scale = scale_column(column)
    scale_S = _tensor(rows.column(scale)) if scale in rows.schema.names else None
    return CompactEmbedding(_vectors(rows.column(column)), scale_S)


def _vectors(column: pa.FixedSizeListArray) -> Tensor:
    return _tensor(column.flatten()).view(len(column), column.type.list_size)


def _tensor(column: pa.Array) -> Tensor:
    """Converts a column to a tensor; nulls become NaN."""
    # DLPack refuses columns with nulls; numpy copies them, with NaN for null.
    if column.null_count:
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False)))
    tensor: Tensor = torch.utils.dlpack.from_dlpack(column)
    return tensor
