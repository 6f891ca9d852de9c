"""Holds the labels that a training step learns, and averages losses over the examples that have them.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm.data.batch import ROW_WEIGHT
from exfm.interfaces.task_head import TaskHead


@dataclass(frozen=True)
class Labels:
    """Holds the labels of a batch that are learned, of the tasks with at least one known label.

    Attributes:
        values: (B,) by task: the label, or NaN where it is not known.
        weights: (B,) by task, the weight of each example in a mean, 0 where its label is not known; a task without an
            entry has all labels, and each weighs 1.
        all_weights: (B,) by task, of the tasks that are not learned too, see ``Batch.weights``.
        heads: heads by task; a task without an entry has a binary label, which is learned by cross-entropy.
        totals: of a shard of a batch, the divisors of its losses by task, in place of the sum of its weights: the mean
            of that sum over the shards. The mean of the shards' losses is then the loss of the batch.
        rows: likewise the mean number of rows of a shard; None of a whole batch.
    """

    values: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    all_weights: Mapping[str, Tensor] = field(default_factory=dict)
    heads: Mapping[str, TaskHead] = field(default_factory=dict)
    totals: Mapping[str, float] = field(default_factory=dict)
    rows: float | None = None

    @classmethod
    def of_tasks(
        cls,
        labels: Mapping[str, Tensor],
        tasks: Collection[str],
        weights: Mapping[str, Tensor] | None = None,
        heads: Mapping[str, TaskHead] | None = None,
    ) -> Labels:
        """Selects the labels of some tasks; a task without any known label of an example with weight is left out.

        Args:
            labels: (B,) by task, NaN where a label is not known.
            weights: (B,) by task, see ``Batch.weights``.
            heads: see the attribute.
        """
        if not tasks:
            return cls({}, all_weights=weights or {}, heads=heads or {})
        unknown_TB = unknown_labels(labels, tasks, weights or {})
        # Read at once for all tasks, because each read of a device's tensor waits for the device.
        counts = unknown_TB.sum(dim=1).tolist()
        return cls._select(labels, tasks, weights or {}, heads or {}, unknown_TB, counts, unknown_TB.shape[1])

    @classmethod
    def of_shard(
        cls,
        labels: Mapping[str, Tensor],
        tasks: Collection[str],
        weights: Mapping[str, Tensor],
        heads: Mapping[str, TaskHead],
        totals: Sequence[LabelTotals],
        shards: int,
    ) -> Labels:
        """Selects the labels of a shard of a batch, whose losses average to that of the batch over its shards.

        Args:
            totals: of the whole batch, by task in the order of ``tasks``.
            shards: the number of shards.
        """
        if not tasks:
            return cls({}, all_weights=weights, heads=heads)
        unknown_TB = unknown_labels(labels, tasks, weights)
        counts = [total.unknown for total in totals]
        rows = totals[0].rows
        selected = cls._select(labels, tasks, weights, heads, unknown_TB, counts, rows)
        weight = {task: total.weight / shards for task, total in zip(tasks, totals, strict=True)}
        return replace(selected, totals=weight, rows=rows / shards)

    @classmethod
    def _select(
        cls,
        labels: Mapping[str, Tensor],
        tasks: Collection[str],
        present: Mapping[str, Tensor],
        heads: Mapping[str, TaskHead],
        unknown_TB: Tensor,
        counts: Sequence[int],
        rows: int,
    ) -> Labels:
        """Selects the labels of the tasks that are known of any of the ``rows`` of the whole batch."""
        weight_B = present.get(ROW_WEIGHT)
        values: dict[str, Tensor] = {}
        of_task: dict[str, Tensor] = {}
        for task, unknown_B, count in zip(tasks, unknown_TB, counts, strict=True):
            if count == rows > 0:
                continue
            values[task] = labels[task]
            if weight_B is not None:
                # Not the task's own weight: the losses of a sampled log have an offset instead, see ``LogSampling``.
                of_task[task] = torch.where(unknown_B, 0.0, weight_B)
            elif count:
                of_task[task] = (~unknown_B).to(labels[task].dtype)
        return cls(values, of_task, present, heads)

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

    def weight(self, task: str) -> Tensor:
        """Returns the weight (B,) of each example in a mean of a task."""
        return self.weights.get(task, torch.ones_like(self.values[task]))

    def filled(self, task: str) -> Tensor:
        """Returns the labels (B,) of a task; where a label is not known, 0, or a known label if the task has a head."""
        values_B = self.values[task]
        if task not in self.weights or not values_B.numel():
            return values_B
        if task not in self.heads:
            return values_B.nan_to_num(0.0)
        # A known label, because a head need have no finite loss of 0; the largest is read without waiting for a device.
        return torch.where(values_B.isnan(), values_B.nan_to_num(-torch.inf).max(), values_B)

    def explained(self, task: str, logit_B: Tensor) -> Tensor:
        """Returns targets (B,) of a task, without gradient: the average of the label and the model's probability."""
        return (self.filled(task) + logit_B.detach().sigmoid()) / 2

    def loss(self, task: str, logit_B: Tensor) -> Tensor:
        """Returns the mean loss of a task's head over its known labels: the cross-entropy, where it has no entry.

        Args:
            logit_B: the outputs of the head, (B,) logits or as its entry says.
        """
        if task not in self.heads:
            return self.cross_entropy(task, logit_B, self.filled(task))
        weight_B = self.weights.get(task)
        if task in self.totals:
            return self._shard_loss(self.heads[task], task, logit_B)
        loss_B = self.heads[task].loss(logit_B, self.filled(task))
        return loss_B.mean() if weight_B is None else (loss_B * weight_B).sum() / weight_B.sum()

    def _shard_loss(self, head: TaskHead, task: str, output: Tensor) -> Tensor:
        """Returns a head's loss of the rows whose label is known; a shard may have none that could fill the others."""
        values_B, weight_B = self.values[task], self.weights.get(task)
        if weight_B is None:
            return head.loss(output, values_B).sum() / self.totals[task]
        (index,) = weight_B.nonzero(as_tuple=True)
        loss_B = head.loss(output[index], values_B[index])
        return (loss_B * weight_B[index]).sum() / self.totals[task]

    def cross_entropy(self, task: str, logit_B: Tensor, target_B: Tensor) -> Tensor:
        """Averages the cross-entropy of logits and targets (B,) over the examples whose label of a task is known."""
        weight_B = self.weights.get(task)
        if weight_B is None and task not in self.totals:
            # Not as below with weights of 1: its gradient rounds otherwise.
            return binary_cross_entropy_with_logits(logit_B, target_B)
        loss_B = binary_cross_entropy_with_logits(logit_B, target_B, reduction="none")
        if weight_B is None:
            return loss_B.sum() / self.totals[task]
        total = self.totals[task] if task in self.totals else weight_B.sum()
        return (loss_B * weight_B).sum() / total


@dataclass(frozen=True)
class LabelTotals:
    """Counts the labels of a task in a whole batch.

    Attributes:
        rows: the rows of the batch.
        unknown: the rows whose label is not known, or which weigh nothing.
        weight: the sum of the weights of the others.
    """

    rows: int
    unknown: int
    weight: float


def unknown_labels(labels: Mapping[str, Tensor], tasks: Collection[str], weights: Mapping[str, Tensor]) -> Tensor:
    """Masks the examples (T, B), by task, whose label is not known or which weigh nothing."""
    unknown_TB = torch.stack([labels[task] for task in tasks]).isnan()
    weight_B = weights.get(ROW_WEIGHT)
    return unknown_TB if weight_B is None else unknown_TB | (weight_B == 0)


def label_sums(
    labels: Mapping[str, Tensor], tasks: Collection[str], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Returns the sums over rows, (T,) by name, that ``LabelTotals`` of the whole batch are made of."""
    if not tasks:
        return {}
    unknown_TB = unknown_labels(labels, tasks, weights)
    weight_B = weights.get(ROW_WEIGHT)
    unknown_T = unknown_TB.sum(dim=1, dtype=torch.float64)
    counted_TB = (~unknown_TB).double()
    weight_T = counted_TB.sum(dim=1) if weight_B is None else counted_TB @ weight_B.double()
    return {"unknown": unknown_T, "weight": weight_T}


def label_totals(sums: Mapping[str, Tensor], rows: int) -> list[LabelTotals]:
    """Reads the totals of each task from the sums over a whole batch of so many rows."""
    if "unknown" not in sums:
        return []
    # Read at once for all tasks, because each read of a device's tensor waits for the device.
    unknown, weight = torch.stack([sums["unknown"], sums["weight"]]).tolist()
    return [LabelTotals(rows, round(count), total) for count, total in zip(unknown, weight, strict=True)]
