"""Joins supervision to batches by example id: vectorised, and a miss is a mask.

Legend: S supervised rows, B examples of a batch, K of them that were found, E width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from exfm.interfaces.transfer_strategy import Supervision
from exfm.supervision.embeddings import CompactEmbedding


@dataclass(frozen=True)
class Joined:
    """Supervision aligned with B examples.

    Attributes:
        found: (B,) bool, whether the teacher has a row of the example.
        age_us: (K,) example time minus watermark of those found; None where the watermark is not known.
    """

    supervision: Supervision
    found: Tensor
    age_us: Tensor | None


class Joiner(Protocol):
    """A teacher's supervision, from wherever it comes."""

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """The supervision of the given examples (B,); those without any are misses."""
        ...


@dataclass(frozen=True)
class SupervisionRows:
    """A teacher's supervision of S examples, in any order.

    Attributes:
        example_id: (S,) int64.
        probabilities: (S,) float32 by task; NaN where the teacher had not seen a label of the task yet.
        watermark_us: (S,) int64: the teacher had trained on examples before this time only.
        embedding: of S rows, where the teacher gives any.
    """

    example_id: Tensor
    probabilities: Mapping[str, Tensor]
    watermark_us: Tensor
    embedding: CompactEmbedding | None = None

    @classmethod
    def from_table(cls, rows: pa.Table) -> SupervisionRows:
        """The rows of a supervision file."""
        prefix = "prediction_"
        embedding = None
        if "embedding" in rows.column_names:
            lists = rows.column("embedding").combine_chunks()
            values_SE = _tensor(lists.flatten()).view(len(lists), lists.type.list_size)
            scaled = "embedding_scale" in rows.column_names
            embedding = CompactEmbedding(values_SE, _tensor(rows.column("embedding_scale")) if scaled else None)
        return cls(
            _tensor(rows.column("example_id")),
            {
                name.removeprefix(prefix): _tensor(rows.column(name))
                for name in rows.column_names
                if name.startswith(prefix)
            },
            _tensor(rows.column("watermark").cast(pa.int64())),
            embedding,
        )

    @classmethod
    def cat(cls, parts: Sequence[SupervisionRows]) -> SupervisionRows:
        """The rows of parts with equal tasks, at least one."""
        if len(parts) == 1:
            return parts[0]
        embeddings = [part.embedding for part in parts if part.embedding is not None]
        return cls(
            torch.cat([part.example_id for part in parts]),
            {task: torch.cat([part.probabilities[task] for part in parts]) for task in parts[0].probabilities},
            torch.cat([part.watermark_us for part in parts]),
            CompactEmbedding.cat(embeddings) if embeddings else None,
        )

    def slice(self, start: int, stop: int) -> SupervisionRows:
        """A stretch of the rows, without copying them."""
        rows = slice(start, stop)
        return SupervisionRows(
            self.example_id[rows],
            {task: values[rows] for task, values in self.probabilities.items()},
            self.watermark_us[rows],
            None if self.embedding is None else self.embedding.take(rows),
        )

    def index(self) -> SupervisionIndex:
        """Ready to be joined. Of several rows of one example the first counts."""
        ids = self.example_id.numpy()
        if bool((ids[1:] > ids[:-1]).all()):
            return SupervisionIndex(self, self.example_id, None)
        order = np.argsort(ids)  # several times faster than a stable sort, which only repeated ids need
        ordered = ids[order]
        if bool((ordered[1:] == ordered[:-1]).any()):
            order = np.argsort(ids, kind="stable")
        return SupervisionIndex(self, torch.from_numpy(ids[order]), torch.from_numpy(order))


@dataclass(frozen=True)
class SupervisionIndex:
    """Supervised rows, sorted by example id.

    Attributes:
        order: (S,) the row behind each sorted id; None where the rows are sorted themselves.
    """

    rows: SupervisionRows
    sorted_id: Tensor
    order: Tensor | None

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """The supervision of the given examples (B,); those without any are misses."""
        row, found = locate(self.sorted_id, example_id)
        if self.order is not None:
            row = self.order[row]
        supervision = align(self.rows.probabilities, self.rows.embedding, row, found)
        return Joined(supervision, found, event_time_us[found] - self.rows.watermark_us[row][found])


def locate(sorted_id: Tensor, example_id: Tensor) -> tuple[Tensor, Tensor]:
    """Places (B,) of ids among sorted ones (S,), and whether each is there; a place without one is meaningless.

    Without any sorted id there are no places at all.
    """
    if sorted_id.numel() == 0:
        return torch.zeros(0, dtype=torch.int64), torch.zeros_like(example_id, dtype=torch.bool)
    place = torch.searchsorted(sorted_id, example_id).clamp_(max=sorted_id.numel() - 1)
    return place, sorted_id[place] == example_id


def align(
    probabilities: Mapping[str, Tensor], embedding: CompactEmbedding | None, row: Tensor, found: Tensor
) -> Supervision:
    """Supervision of B examples from the rows (S,) found for them."""
    size = found.shape[0]
    if row.shape[0] < size:
        nothing = {task: torch.zeros(size) for task in probabilities}
        zeros_BE = None if embedding is None else torch.zeros(size, embedding.values_SE.shape[1])
        return Supervision(nothing, dict.fromkeys(nothing, found), zeros_BE)
    picked = {task: values[row] for task, values in probabilities.items()}
    hit = {task: found & ~values.isnan() for task, values in picked.items()}
    known = {task: values.nan_to_num(0.0) for task, values in picked.items()}
    if embedding is None:
        return Supervision(known, hit)
    learned_B = torch.stack(list(hit.values())).any(dim=0)
    decoded_BE = embedding.take(row).decode()
    return Supervision(known, hit, torch.where(learned_B.unsqueeze(1), decoded_BE, 0.0))


def _tensor(column: pa.ChunkedArray | pa.Array) -> Tensor:
    """A column's values; a missing number is NaN."""
    return torch.from_numpy(np.array(column.to_numpy(zero_copy_only=False)))
