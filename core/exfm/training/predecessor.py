"""Compares a model's predictions of the last rows of a window with those of its newest published snapshot.

Both predict rows that they have not trained on: the model just before its steps on them, the snapshot as its readers
have it. So the comparison does not depend on how hard the rows are.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exfm.bookkeeping.window_counters import task_sums
from exfm.config.checks import Arm
from exfm.data.batch import Batch
from exfm.distributed.chunk_exchange import BatchShard
from exfm.interfaces.data_source import Window
from exfm.learning.snapshot_loader import SnapshotLoader
from exfm.learning.trainer import Forward, Trainer
from exfm.storage.snapshots import SnapshotRegistry
from exfm.training.gate import Comparison, PairedScores
from exfm.transfer.soft_label_metrics import moments_of, score_width


def served_arm(arm: Arm) -> Arm:
    """Returns a model as it is served: without transfer, whose additions to its tables are folded into snapshots."""
    return replace(arm, config=arm.config.model_copy(update={"transfer": ()}))


@dataclass(frozen=True)
class _KeptBatch:
    """Holds this process's shard of a batch, and the predictions of its rows by the model."""

    batch: Batch
    shard: BatchShard
    probabilities: dict[str, Tensor]


class Predecessor:
    """Predicts the last rows of a window with the newest snapshot published before it.

    Args:
        trainer: a model of the served shape, whose weights are overwritten by those of snapshots.
        snapshots: where the model's snapshots are published.
        rows: number of the last rows of a window to compare, at least: whole batches are kept.
    """

    def __init__(self, trainer: Trainer, snapshots: SnapshotRegistry, rows: int) -> None:
        self._trainer = trainer
        self._snapshots = snapshots
        self._rows = rows
        self._loader = SnapshotLoader(trainer, snapshots)
        self._kept: deque[_KeptBatch] = deque()

    def begin(self) -> None:
        """Starts a window."""
        self._kept.clear()

    def keep(self, batch: Batch, shard: BatchShard, forward: Forward) -> None:
        """Keeps a batch with the model's predictions, and forgets the batches that are no longer among the last rows.

        Args:
            forward: the model's forward pass before its step on the batch.
        """
        predicted = forward.first_rows(shard.size).probabilities
        self._kept.append(_KeptBatch(batch, shard, {task: values.cpu() for task, values in predicted.items()}))
        # By the rows of all processes, so that each keeps its shards of the same batches.
        rows = sum(sum(kept.shard.counts) for kept in self._kept)
        while rows - sum(self._kept[0].shard.counts) >= self._rows:
            rows -= sum(self._kept.popleft().shard.counts)

    def compare(self, window: Window, tasks: tuple[str, ...]) -> Comparison | None:
        """Predicts the kept rows, and forgets them; returns None without rows or before the first snapshot.

        A collective operation of all processes.

        Args:
            window: the window that ends. Snapshots after its beginning, of a window that is repeated, are skipped.
            tasks: the tasks to compare.

        Raises:
            RunError: there are published snapshots, and none can be read.
        """
        kept, self._kept = self._kept, deque()
        if not kept or not tasks:
            return None
        model, registry = self._trainer.arm.name, self._snapshots
        candidates = filter(registry.is_stored, registry.published(model, window.start_us))
        snapshot = self._loader.newest(candidates, "comparing with")
        if snapshot is None:
            return None
        kinds = self._trainer.model.label_kinds
        sizes = [score_width(self._trainer.model.labels[task]) for task in tasks]
        # A row of sums of all tasks for the model, and a row for the snapshot.
        sums = torch.zeros(2, sum(sizes), dtype=torch.float64)
        for batch in kept:
            predicted = self._trainer.predict(batch.batch).first_rows(batch.shard.size).probabilities
            labels = {task: batch.batch.labels[task][: batch.shard.size] for task in tasks}
            weights = {name: weight_B[: batch.shard.size] for name, weight_B in batch.batch.weights.items()}
            for number, probabilities in enumerate((batch.probabilities, predicted)):
                counted = task_sums({task: probabilities[task].cpu() for task in tasks}, labels, weights, kinds)
                sums[number] += torch.cat([counted[task] for task in tasks])
        total = self._trainer.plan.process_group.all_gather(sums).sum(dim=0)
        scores: dict[str, PairedScores] = {}
        for task, of_task in zip(tasks, torch.split(total, sizes, dim=1), strict=True):
            scores[task] = PairedScores(*(moments_of(row, kinds[task]) for row in of_task))
        return Comparison(snapshot.version, scores)
