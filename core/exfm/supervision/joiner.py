"""Joins supervision to batches by example id: vectorised, and a miss is a mask.

Legend: S supervised rows, B examples of a batch, K of them that were found, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from exfm.interfaces.distillation_strategy import TeacherOutput
from exfm.supervision.embeddings import CompactEmbedding

STATE, ROW = "state_", "row_"
"""Prefixes of the columns of an entity's compact state, and of a feature's table row."""


@dataclass(frozen=True)
class Joined:
    """Supervision aligned with B examples.

    Attributes:
        found: (B,) bool, whether the teacher has a row of the example.
        age_us: (K,) example time minus watermark of those found; None where the watermark is not known.
    """

    supervision: TeacherOutput
    found: Tensor
    age_us: Tensor | None

    def hits(self, tasks: Collection[str] = ()) -> Tensor:
        """Which examples (B,) have a finite prediction of one of these tasks, or of any where none is named."""
        known = [hit_B for task, hit_B in self.supervision.hit.items() if task in tasks or not tasks]
        return torch.stack(known).any(dim=0) if known else torch.zeros_like(self.found)


@dataclass(frozen=True)
class Stored:
    """What a teacher stored beside its predictions of S of B examples.

    Attributes:
        found: (B,) bool, which examples these are: those it has rows of, having learned.
        watermark_us: (S,) int64: it had trained on examples before this time only when it predicted them.
        vectors: (S, K) float32 by column.
    """

    found: Tensor
    watermark_us: Tensor
    vectors: Mapping[str, Tensor]


class Joiner(Protocol):
    """A teacher's supervision, from wherever it comes."""

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """The supervision of the given examples (B,); those without any are misses."""
        ...

    def stored(self, example_id: Tensor, event_time_us: Tensor) -> Stored:
        """What it has stored of the given examples (B,)."""
        ...


@dataclass(frozen=True)
class SupervisionRows:
    """A teacher's supervision of S examples, in the order of the stream.

    Attributes:
        example_id: (S,) int64.
        event_time_us: (S,) int64, never decreasing.
        probabilities: (S,) float32 by task; NaN where the teacher had not seen a label of the task yet.
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
        """The rows of a supervision file; they share its memory where nothing is missing."""
        prefix = "prediction_"
        names = rows.schema.names
        return cls(
            _tensor(rows.column("example_id")),
            _tensor(rows.column("event_time").view(pa.int64())),
            {name.removeprefix(prefix): _tensor(rows.column(name)) for name in names if name.startswith(prefix)},
            _tensor(rows.column("watermark").view(pa.int64())),
            _compact(rows, "embedding") if "embedding" in names else None,
            {name: _compact(rows, name) for name in names if name.startswith((STATE, ROW))},
        )

    @classmethod
    def cat(cls, parts: Sequence[SupervisionRows]) -> SupervisionRows:
        """The rows of parts with equal tasks, at least one."""
        if len(parts) == 1:
            return parts[0]
        embeddings = [part.embedding for part in parts if part.embedding is not None]
        return cls(
            torch.cat([part.example_id for part in parts]),
            torch.cat([part.event_time_us for part in parts]),
            {task: torch.cat([part.probabilities[task] for part in parts]) for task in parts[0].probabilities},
            torch.cat([part.watermark_us for part in parts]),
            CompactEmbedding.cat(embeddings) if embeddings else None,
            {column: CompactEmbedding.cat([part.vectors[column] for part in parts]) for column in parts[0].vectors},
        )

    def slice(self, start: int, stop: int) -> SupervisionRows:
        """A stretch of the rows, without copying them."""
        rows = slice(start, stop)
        return SupervisionRows(
            self.example_id[rows],
            self.event_time_us[rows],
            {task: values[rows] for task, values in self.probabilities.items()},
            self.watermark_us[rows],
            None if self.embedding is None else self.embedding.take(rows),
            {column: vector.take(rows) for column, vector in self.vectors.items()},
        )

    def index(self) -> SupervisionIndex:
        """Ready to be joined."""
        return SupervisionIndex(self)


class SupervisionIndex:
    """Rows of different examples, to be looked up by example id."""

    def __init__(self, rows: SupervisionRows) -> None:
        self.rows = rows

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """The supervision of the given examples (B,); those without any are misses."""
        rows = self.rows
        if torch.equal(example_id, rows.example_id):  # the student sees all that the teacher has seen
            found = torch.ones_like(example_id, dtype=torch.bool)
            return Joined(align(rows.probabilities, rows.embedding, found), found, event_time_us - rows.watermark_us)
        if not rows.example_id.numel():
            found = torch.zeros_like(example_id, dtype=torch.bool)
            width = None if rows.embedding is None else rows.embedding.values_SE.shape[1]
            return Joined(miss(rows.probabilities, found.shape[0], width), found, torch.zeros(0, dtype=torch.int64))
        row, found = self._locate(example_id, event_time_us)
        picked = {task: values[row] for task, values in rows.probabilities.items()}
        embedding = None if rows.embedding is None else rows.embedding.take(row)
        age_us = event_time_us - rows.watermark_us[row]
        age_us = age_us if found.all() else age_us[found]
        return Joined(align(picked, embedding, found), found, age_us)

    def stored(self, example_id: Tensor, event_time_us: Tensor) -> Stored:
        """What it has stored of the given examples (B,)."""
        if not self.rows.example_id.numel():
            return nothing_stored(example_id)
        row, found = self._locate(example_id, event_time_us)
        found &= torch.stack([values[row].isfinite() for values in self.rows.probabilities.values()]).any(dim=0)
        kept = row[found]
        vectors = {column: vector.take(kept).decode() for column, vector in self.rows.vectors.items()}
        return Stored(found, self.rows.watermark_us[kept], vectors)

    def _locate(self, example_id: Tensor, event_time_us: Tensor) -> tuple[Tensor, Tensor]:
        """The row (B,) of each example and whether there is one: by time, and by id where rows share a time."""
        rows = self.rows
        if torch.equal(example_id, rows.example_id):
            return torch.arange(example_id.numel()), torch.ones_like(example_id, dtype=torch.bool)
        # Times are sorted on both sides, which numpy makes use of: a tenth of the cost of sorting ids.
        place_B = np.searchsorted(rows.event_time_us.numpy(), event_time_us.numpy())
        row = torch.from_numpy(place_B).clamp_(max=rows.event_time_us.numel() - 1)
        found = rows.example_id[row] == example_id
        if found.all():
            return row, found
        shared = ~found & (rows.event_time_us[row] == event_time_us)
        if shared.any():
            sorted_id, order = self._sorted
            place, found[shared] = lookup(sorted_id, example_id[shared])
            row[shared] = order[place]
        return row, found

    @cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        """Sorted ids, and the row of each."""
        order = np.argsort(self.rows.example_id.numpy())  # several times faster than torch's
        return self.rows.example_id[order], torch.from_numpy(order)


def lookup(sorted_id: Tensor, example_id: Tensor) -> tuple[Tensor, Tensor]:
    """The place (B,) of each example among sorted ids, at least one, and whether it is there.

    A place of one that is not there has no meaning.
    """
    order = np.argsort(example_id.numpy())  # neighbouring ids are looked for in neighbouring places, which are in cache
    wanted = example_id.numpy()[order]
    places = np.minimum(np.searchsorted(sorted_id.numpy(), wanted), sorted_id.numel() - 1)
    place_B = np.empty_like(places)
    place_B[order] = places
    place = torch.from_numpy(place_B)
    return place, sorted_id[place] == example_id


def align(probabilities: Mapping[str, Tensor], embedding: CompactEmbedding | None, found: Tensor) -> TeacherOutput:
    """Supervision of B examples from a row for each (B,), of which those not ``found`` have no meaning."""
    hit = {task: found & values.isfinite() for task, values in probabilities.items()}
    known = {task: values.nan_to_num(0.0, 0.0, 0.0) for task, values in probabilities.items()}
    if embedding is None:
        return TeacherOutput(known, hit)
    learned_B = torch.stack(list(hit.values())).any(dim=0)
    decoded_BE = embedding.decode()
    if not learned_B.all():
        decoded_BE.masked_fill_(~learned_B.unsqueeze(1), 0.0)
    return TeacherOutput(known, hit, decoded_BE)


def rows_of(supervision: TeacherOutput, rows: slice) -> TeacherOutput:
    """The supervision of some of the examples."""
    return TeacherOutput(
        {task: values[rows] for task, values in supervision.probabilities.items()},
        {task: values[rows] for task, values in supervision.hit.items()},
        None if supervision.embedding is None else supervision.embedding[rows],
    )


def nothing_stored(example_id: Tensor) -> Stored:
    """What there is of examples (B,) that a teacher has stored nothing of."""
    return Stored(torch.zeros_like(example_id, dtype=torch.bool), example_id[:0], {})


def miss(tasks: Iterable[str], size: int, embedding_dim: int | None = None) -> TeacherOutput:
    """What ``size`` examples get for which there are no rows at all."""
    nothing = {task: torch.zeros(size) for task in tasks}
    embedding_BE = None if embedding_dim is None else torch.zeros(size, embedding_dim)
    return TeacherOutput(nothing, dict.fromkeys(nothing, torch.zeros(size, dtype=torch.bool)), embedding_BE)


def scale_column(column: str) -> str:
    """Names the column of the scales of a column of int8 vectors."""
    return "embedding_scale" if column == "embedding" else f"scale_{column}"


def _compact(rows: pa.RecordBatch, column: str) -> CompactEmbedding:
    scale = scale_column(column)
    scale_S = _tensor(rows.column(scale)) if scale in rows.schema.names else None
    return CompactEmbedding(_vectors(rows.column(column)), scale_S)


def _vectors(column: pa.FixedSizeListArray) -> Tensor:
    return _tensor(column.flatten()).view(len(column), column.type.list_size)


def _tensor(column: pa.Array) -> Tensor:
    """A column's values; a missing number is NaN."""
    if column.null_count:
        return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False)))
    tensor: Tensor = torch.utils.dlpack.from_dlpack(column)
    return tensor
