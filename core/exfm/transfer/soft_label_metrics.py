"""Scores a student's soft labels against the labels: the teacher's, and those that a label adapter corrects.

Legend: B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from exfm.evaluation.label_kinds import ClassMoments, ValueMoments, as_counters
from exfm.evaluation.metrics import CLIP, Moments, as_count
from exfm.interfaces.distillation_strategy import TeacherOutput
from exfm.interfaces.process_group import ProcessGroup
from exfm.interfaces.schema import Label, LabelKind
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.mappings import map_values

TEACHER, CORRECTED = "teacher", "corrected"
_Rows = tuple[Tensor, Tensor, Tensor, Tensor]
_SINGLE = torch.ones(1)
_WAITING = 32
"""Bounds the batches that are summed in a single call, because a small batch costs little but its calls (ours)."""


class SoftLabelMetrics:
    """Sums up each strategy's and task's soft labels over a window's examples that a teacher has supervised.

    Of strategies that learn the same tasks from the same teachers, only the first counts the teacher's labels. Late
    labels count too, because labels are only scored here and not learned from.

    Args:
        strategies: the student's, in the order of the file.
        kinds: the kind of each label, by task; a task without an entry is binary.
    """

    def __init__(self, strategies: Sequence[TransferStrategy], kinds: Mapping[str, LabelKind] | None = None) -> None:
        self._kinds = kinds or {}
        # Sums stay on the device until the window ends, because reading a sum would wait for the device at every batch.
        self._sums: dict[tuple[int, str, str], Tensor] = {}
        self._waiting: dict[tuple[int, str, str], list[_Rows]] = {}
        self._batches: dict[tuple[int, str, str], int] = {}
        taught = [(strategy.config.teachers, strategy.teacher_tasks) for strategy in strategies]
        self._first = {number for number, pair in enumerate(taught) if taught.index(pair) == number}

    def add_teacher(
        self,
        number: int,
        teacher: TeacherOutput,
        labels: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        sizes: Sequence[int],
    ) -> None:
        """Counts the labels that the teachers of a strategy have stored for the batches of a chunk.

        Args:
            number: the strategy's position under ``transfer``.
            teacher: the teacher's output for the chunk.
            labels: (B,) by task, NaN where a label is not known.
            weights: (B,) by task; a task without an entry has examples that each weigh 1.
            sizes: the number of rows in each batch.
        """
        if number in self._first:
            self._add(number, TEACHER, teacher, labels, weights, sizes)

    def add_corrected(
        self, number: int, adapted: TeacherOutput, labels: Mapping[str, Tensor], weights: Mapping[str, Tensor]
    ) -> None:
        """Counts the labels of a batch that a strategy's adapter has corrected, before it learns from the batch.

        Args:
            number: the strategy's position under ``transfer``.
            adapted: the teacher's output as the strategy corrects it.
            labels: (B,) by task, NaN where a label is not known.
            weights: (B,) by task; a task without an entry has examples that each weigh 1.
        """
        sizes = [values.shape[0] for values in list(adapted.probabilities.values())[:1]]
        self._add(number, CORRECTED, adapted, labels, weights, sizes)

    @torch.no_grad()
    def _add(
        self,
        number: int,
        label: str,
        output: TeacherOutput,
        labels: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        sizes: Sequence[int],
    ) -> None:
        """Adds the rows of successive batches, which are summed when enough batches wait, across chunks."""
        for task, soft_B in output.probabilities.items():
            key, start, added = (number, label, task), 0, 0
            rows = (soft_B, labels[task], output.hit[task], weights.get(task, _SINGLE).expand_as(labels[task]))
            while added < len(sizes):
                waiting = self._batches.get(key, 0)
                taken = sizes[added : added + _WAITING - waiting]
                end = start + sum(taken)
                soft, label_B, hit_B, weight_B = (values[start:end] for values in rows)
                self._waiting.setdefault(key, []).append((soft, label_B, hit_B, weight_B))
                self._batches[key] = waiting + len(taken)
                start, added = end, added + len(taken)
                if self._batches[key] == _WAITING:
                    self._count(key)

    def _count(self, key: tuple[int, str, str]) -> None:
        """Adds the waiting batches to their sums."""
        self._batches[key] = 0
        soft, label, hit, weight = zip(*self._waiting[key], strict=True)
        kind = self._kinds.get(key[2], "binary")
        sums = sum_scores(torch.cat(soft), torch.cat(label), torch.cat(hit), torch.cat(weight), kind)
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums
        self._waiting[key].clear()

    def counters(self, process_group: ProcessGroup) -> list[dict[str, Any]]:
        """Adds the sums up over the processes, and returns them as JSON, each with its position under ``transfer``.

        Args:
            process_group: the processes, each of which has counted its rows of the same batches.
        """
        for key, waiting in self._waiting.items():
            if waiting:
                self._count(key)
        self._sums = map_values(Tensor.cpu, self._sums)
        if process_group.world_size > 1 and self._sums:
            # The keys are in the same order on every process, because all take part in each batch.
            total = process_group.all_gather(torch.cat([*self._sums.values()])).sum(dim=0)
            pieces = torch.split(total, [sums.numel() for sums in self._sums.values()])
            self._sums = dict(zip(self._sums, pieces, strict=True))
        counters = []
        # In the order of the strategies: what a teacher says, then what an adapter makes of it.
        ordered = sorted(self._sums, key=lambda key: (key[0], key[1] == CORRECTED))
        for key in ordered:
            (number, label, task), sums = key, self._sums[key]
            moments = moments_of(sums, self._kinds.get(task, "binary"))
            counters.append({"transfer": number, "label": label, "task": task, **as_counters(moments)})
        return counters


def sum_scores(
    soft: Tensor, label_B: Tensor, hit_B: Tensor, weight_B: Tensor | None, kind: LabelKind = "binary"
) -> Tensor:
    """Returns the sums of ``Moments`` over the hits with a label, float64: (4,), (5,) or (4 + C,) by the kind of label.

    Args:
        soft: (B,), or (B, C) of a multiclass label.
        label_B: NaN where a label is not known.
        weight_B: the weight of each example; None where each weighs 1.
    """
    hit_B = hit_B & ~label_B.isnan()
    # float64, because float32 sums over a window lose small terms, and probabilities near 1 their logarithm.
    soft, label_B = soft.double(), label_B.double().nan_to_num(0.0)
    if kind == "regression":
        terms = [torch.ones_like(soft), label_B, (soft - label_B).square(), soft, label_B.square()]
    elif kind == "multiclass":
        class_B = label_B.long()
        loss_B = -soft.gather(1, class_B.unsqueeze(1)).squeeze(1).clamp(CLIP, 1).log()
        largest_B, first_B = soft.max(dim=1)
        terms = [torch.ones_like(loss_B), (first_B == class_B).double(), loss_B, largest_B]
        terms += one_hot(class_B, soft.shape[1]).double().unbind(1)
    else:
        clipped_B = soft.clamp(CLIP, 1 - CLIP)
        likelihood_B = torch.where(label_B > 0, clipped_B, 1 - clipped_B)
        terms = [torch.ones_like(soft), label_B, -likelihood_B.log(), soft]
    return torch.stack(terms) @ (hit_B.double() if weight_B is None else hit_B * weight_B.double())


def score_width(label: Label) -> int:
    """Returns how many sums ``sum_scores`` has of a label."""
    more = {"binary": 0, "regression": 1, "multiclass": label.width}
    return 4 + more[label.kind]


def moments_of(sums: Tensor, kind: LabelKind = "binary") -> Moments:
    """Converts the sums of ``sum_scores``."""
    examples, positives, loss, predicted, *more = sums.tolist()
    if kind == "regression":
        return ValueMoments(as_count(examples), positives, loss, predicted, *more)
    if kind == "multiclass":
        counts = tuple(map(as_count, more))
        return ClassMoments(as_count(examples), as_count(positives), loss, predicted, counts)
    return Moments(as_count(examples), as_count(positives), loss, predicted)
