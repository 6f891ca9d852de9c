"""Holds the labels that a training step learns, and averages losses over the examples that have them.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm.data.batch import ROW_WEIGHT


@dataclass(frozen=True)
class Labels:
    """Holds the labels of a batch that are learned, of the tasks with at least one known label.

    Attributes:
        values: (B,) by task: 0, 1, or NaN where a label is not known.
        weights: (B,) by task, the weight of each example in a mean, 0 where its label is not known; a task without an
            entry has all labels, and each weighs 1.
        all_weights: (B,) by task, of the tasks that are not learned too, see ``Batch.weights``.
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    all_weights: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_tasks(
        cls, labels: Mapping[str, Tensor], tasks: Collection[str], weights: Mapping[str, Tensor] | None = None
    ) -> Labels:
        """Selects the labels of some tasks; a task without any known label of an example with weight is left out.

        Args:
            labels: (B,) by task, NaN where a label is not known.
            weights: (B,) by task, see ``Batch.weights``.
        """
        present = weights or {}
        weight_B = present.get(ROW_WEIGHT)
        if not tasks:
            return cls({}, all_weights=present)
        unknown_TB = torch.stack([labels[task] for task in tasks]).isnan()
        if weight_B is not None:
            unknown_TB = unknown_TB | (weight_B == 0)
        # Read at once for all tasks, because each read of a device's tensor waits for the device.
        counts = unknown_TB.sum(dim=1).tolist()
        values: dict[str, Tensor] = {}
        of_task: dict[str, Tensor] = {}
        for task, unknown_B, count in zip(tasks, unknown_TB, counts, strict=True):
            if count == unknown_B.numel() > 0:
                continue
            values[task] = labels[task]
            if weight_B is not None:
                # Not the task's own weight: the losses of a sampled log have an offset instead, see ``LogSampling``.
                of_task[task] = torch.where(unknown_B, 0.0, weight_B)
            elif count:
                of_task[task] = (~unknown_B).to(labels[task].dtype)
        return cls(values, of_task, present)

    @property
    def row_weight(self) -> Tensor | None:
        """Returns the weight of each row; None where each weighs 1."""
        return self.all_weights.get(ROW_WEIGHT)

    def counts(self, task: str) -> tuple[Tensor, Tensor]:
        """Returns the weight of the examples whose label of a task is 1, and of all whose label is known."""
        weight_B = self.weights.get(task)
        if weight_B is None:
            return self.values[task].sum(), torch.tensor(float(self.values[task].numel()))
        return (self.filled(task) * weight_B).sum(), weight_B.sum()

    def filled(self, task: str) -> Tensor:
        """Returns the labels (B,) of a task, 0 where a label is not known."""
        values_B = self.values[task]
        return values_B.nan_to_num(0.0) if task in self.weights else values_B

    def explained(self, task: str, logit_B: Tensor) -> Tensor:
        """Returns targets (B,) of a task, without gradient: the average of the label and the model's probability."""
        return (self.filled(task) + logit_B.detach().sigmoid()) / 2

    def loss(self, task: str, logit_B: Tensor) -> Tensor:
        """Returns the mean cross-entropy of logits (B,) and the known labels of a task."""
        return self.cross_entropy(task, logit_B, self.filled(task))

    def cross_entropy(self, task: str, logit_B: Tensor, target_B: Tensor) -> Tensor:
        """Averages the cross-entropy of logits and targets (B,) over the examples whose label of a task is known."""
        weight_B = self.weights.get(task)
        if weight_B is None:
            # Not as below with weights of 1: its gradient rounds otherwise.
            return binary_cross_entropy_with_logits(logit_B, target_B)
        loss_B = binary_cross_entropy_with_logits(logit_B, target_B, reduction="none")
        return (loss_B * weight_B).sum() / weight_B.sum()
