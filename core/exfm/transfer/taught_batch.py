"""Holds what teachers say of some examples, and weighs the losses of a shard of a batch.

The mean over the processes of the losses of shards is the loss of the batch.

Legend: B examples of this process, D width of a token.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from exfm.data.batch import ROW_WEIGHT
from exfm.distributed.batch_gatherer import BatchSums
from exfm.interfaces.distillation_strategy import LabelAdapter, TeacherOutput
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.modeling.labels import Labels, unknown_labels
from exfm.supervision.joiner import slice_output

ROWS = "rows"
"""Names the sum of the weights of a batch's rows."""


@dataclass(frozen=True)
class TaughtBatch:
    """Holds the output of a strategy's teachers for some examples: of a chunk, or of a batch.

    Attributes:
        number: the strategy's position under ``transfer``.
        strategy: the strategy.
        teacher: the teacher's output: as it is stored, or with the probabilities that the rows have in the student's
            log.
    """

    number: int
    strategy: TransferStrategy
    teacher: TeacherOutput

    def slice(self, rows: slice) -> TaughtBatch:
        """Slices the examples."""
        return TaughtBatch(self.number, self.strategy, slice_output(self.teacher, rows))

    def with_inputs(self, tokens: Mapping[str, Tensor], row_weight: Tensor | None) -> TaughtBatch:
        """Adds the tokens (B, D) that the strategy reads, of at least these features, and the weights (B,) of rows."""
        read = {feature: tokens[feature] for feature in self.strategy.reads_features}
        return TaughtBatch(self.number, self.strategy, replace(self.teacher, tokens=read, weight=row_weight))


def shard_sums(
    batches: Sequence[TaughtBatch],
    labels: Mapping[str, Tensor],
    tasks: Collection[str],
    weights: Mapping[str, Tensor],
    rows: int,
) -> dict[str, Tensor]:
    """Returns the sums over a shard's rows by which its losses are weighed, by name.

    They are the weight of the rows, and of an adapter's hits whose label is known.

    Args:
        batches: of ``StudentTransfer.prepare``.
        labels: (B,) by task.
        tasks: the tasks that are learned.
        weights: (B,) by task, see ``Batch.weights``.
        rows: the number of rows.
    """
    weight_B = weights.get(ROW_WEIGHT)
    example = next(iter(labels.values()))
    total = example.new_tensor(rows, dtype=torch.float64) if weight_B is None else weight_B.sum(dtype=torch.float64)
    sums = {ROWS: total}
    for batch in batches:
        if isinstance(batch.strategy, LabelAdapter):
            for task in tasks:
                if task in batch.teacher.hit:
                    hit_B = batch.teacher.hit[task] & ~unknown_labels(labels, (task,), weights)[0]
                    weighed_B = hit_B if weight_B is None else hit_B * weight_B
                    sums[_hits(batch.number, task)] = weighed_B.sum(dtype=torch.float64)
    return sums


def shard_adapter_loss(
    adapter: LabelAdapter, number: int, teacher: TeacherOutput, labels: Mapping[str, Tensor], sums: BatchSums
) -> Tensor:
    """Returns the adapter's loss of a shard, scaled so that its mean over the processes is the batch's."""
    terms: list[Tensor] = []
    for task, label_B in labels.items():
        # Each task alone, because each is a mean over other examples.
        share = sums.share(_hits(number, task)) if task in teacher.hit else 0.0
        if share:
            terms.append(share * adapter.adapter_loss(teacher, {task: label_B}))
    return torch.stack(terms).sum() if terms else torch.zeros((), requires_grad=True)


def sums_prefix(number: int) -> str:
    """Returns the prefix of the names of a strategy's sums."""
    return f"transfer.{number}."


def _hits(number: int, task: str) -> str:
    """Names the sum of an adapter's hits whose label is known."""
    return f"hits.{number}.{task}"


def labelled(teacher: TeacherOutput, labels: Labels) -> tuple[TeacherOutput, dict[str, Tensor]]:
    """Returns the teacher's output, without hits where a label is not known, and labels without NaN."""
    hit = dict(teacher.hit)
    for task in labels.weights.keys() & hit.keys():
        hit[task] = hit[task] & (labels.weights[task] > 0)
    return replace(teacher, hit=hit), {task: labels.filled(task) for task in labels.values}
