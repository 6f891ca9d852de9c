"""Collects the forward passes over the batches of a chunk: their predictions, and the supervision for students.

Legend: S rows so far.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.interfaces.schema import Label
from exfm.learning.trainer import Forward
from exfm.mappings import map_values
from exfm.supervision.embeddings import CompactEmbedding, EmbeddingShape
from exfm.supervision.joiner import SupervisionRows


class ForwardRows:
    """Concatenates the forward passes of a model, batch after batch.

    Args:
        labels: the labels of the model, by task.
        embedding: the form in which the representation is stored; None where it is not stored.
        vectors: the form in which states and table rows are stored, by column.
    """

    def __init__(
        self, labels: Mapping[str, Label], embedding: EmbeddingShape | None, vectors: Mapping[str, EmbeddingShape]
    ) -> None:
        # Each list begins with an empty tensor, so that a chunk without batches concatenates too.
        empty = {task: _empty(label) for task, label in labels.items()}
        self._predicted: dict[str, list[Tensor]] = {task: [values] for task, values in empty.items()}
        self._soft_labels: dict[str, list[Tensor]] = {task: [values] for task, values in empty.items()}
        self._watermarks = [torch.zeros(0, dtype=torch.int64)]
        self._shape, self._shapes = embedding, vectors
        self._vectors = {column: [CompactEmbedding.empty(shape)] for column, shape in vectors.items()}
        self._embeddings: list[CompactEmbedding] = []
        if embedding is not None:
            self._embeddings.append(CompactEmbedding.empty(embedding))

    def add(self, forward: Forward, learned: Collection[str], watermark_us: int) -> None:
        """Adds a batch.

        Args:
            forward: the forward pass.
            learned: the tasks of which the model had seen labels; the soft labels of other tasks are NaN, because
                students must not learn from an untrained head.
            watermark_us: the model had trained on examples before this time.
        """
        for task, values in forward.probabilities.items():
            self._predicted[task].append(values.cpu())
            if task in learned:
                self._soft_labels[task].append(values.cpu())
            else:
                self._soft_labels[task].append(torch.full_like(values, math.nan, device="cpu"))
        size = forward.embedding_BE.shape[0]
        self._watermarks.append(torch.full((size,), watermark_us))
        for column, vector_BK in forward.vectors.items():
            self._vectors[column].append(CompactEmbedding.from_values(vector_BK, self._shapes[column].format))
        if self._shape is not None:
            self._embeddings.append(CompactEmbedding.from_values(forward.embedding_BE, self._shape.format))

    def probabilities(self) -> dict[str, Tensor]:
        """Returns the predictions, (S,) or (S, C) by task."""
        return map_values(torch.cat, self._predicted)

    def supervision(self, seen: Batch) -> SupervisionRows:
        """Returns the supervision of the S examples.

        Args:
            seen: ids and times of the examples.
        """
        embeddings: CompactEmbedding | None = None
        if self._embeddings:
            embeddings = CompactEmbedding.cat(self._embeddings)
        return SupervisionRows(
            seen.example_id,
            seen.event_time_us,
            map_values(torch.cat, self._soft_labels),
            torch.cat(self._watermarks),
            embeddings,
            map_values(CompactEmbedding.cat, self._vectors),
        )


def _empty(label: Label) -> Tensor:
    """Returns no predictions of a label, (0,) or (0, C)."""
    return torch.zeros(0, label.width) if label.kind == "multiclass" else torch.zeros(0)
