"""Collects the forward passes over a chunk's batches: what is predicted, and what of it is supervision.

Legend: S rows so far.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.supervision.embeddings import CompactEmbedding, EmbeddingShape
from exfm.supervision.joiner import SupervisionRows
from exfm.training.trainer import Forward


class ModelOutput:
    """Rows of one model, batch after batch.

    Args:
        tasks: its tasks.
        embedding: how its representation is kept; None where it is not.
        vectors: how states and rows are kept, by column.
    """

    def __init__(
        self, tasks: tuple[str, ...], embedding: EmbeddingShape | None, vectors: Mapping[str, EmbeddingShape]
    ) -> None:
        self._predicted: dict[str, list[Tensor]] = {task: [torch.zeros(0)] for task in tasks}
        self._taught: dict[str, list[Tensor]] = {task: [torch.zeros(0)] for task in tasks}
        self._watermarks = [torch.zeros(0, dtype=torch.int64)]
        self._shape, self._shapes = embedding, vectors
        self._vectors = {column: [CompactEmbedding.empty(shape)] for column, shape in vectors.items()}
        self._embeddings = [] if embedding is None else [CompactEmbedding.empty(embedding)]

    def add(self, forward: Forward, learned: Collection[str], watermark_us: int) -> None:
        """Adds a batch.

        Args:
            forward: the forward pass.
            learned: the tasks of which the model had seen labels; of the others it teaches nothing.
            watermark_us: it had trained on examples before this time.
        """
        size = forward.embedding_BE.shape[0]
        for task, values in forward.probabilities.items():
            self._predicted[task].append(values.cpu())
            self._taught[task].append(values.cpu() if task in learned else torch.full((size,), math.nan))
        self._watermarks.append(torch.full((size,), watermark_us))
        for column, vector_BK in forward.vectors.items():
            self._vectors[column].append(CompactEmbedding.from_values(vector_BK, self._shapes[column].format))
        if self._shape is not None:
            self._embeddings.append(CompactEmbedding.from_values(forward.embedding_BE, self._shape.format))

    def probabilities(self) -> dict[str, Tensor]:
        """What it predicts, (S,) by task."""
        return {task: torch.cat(values) for task, values in self._predicted.items()}

    def supervision(self, seen: Batch) -> SupervisionRows:
        """What it teaches about the S examples."""
        return SupervisionRows(
            seen.example_id,
            seen.event_time_us,
            {task: torch.cat(values) for task, values in self._taught.items()},
            torch.cat(self._watermarks),
            CompactEmbedding.cat(self._embeddings) if self._embeddings else None,
            {column: CompactEmbedding.cat(parts) for column, parts in self._vectors.items()},
        )
