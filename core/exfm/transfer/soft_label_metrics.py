"""Scores a student's soft labels against the labels: the teacher's, and those that a label adapter corrects.

Legend: B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from exfm.evaluation.metrics import CLIP, Moments, as_count
from exfm.interfaces.distillation_strategy import TeacherOutput
from exfm.interfaces.transfer_strategy import TransferStrategy

TEACHER, CORRECTED = "teacher", "corrected"
_Batch = tuple[Tensor, Tensor, Tensor, Tensor]
_SINGLE = torch.ones(1)
_WAITING = 32
"""Bounds the batches that are summed in a single call, because a small batch costs little but its calls (ours)."""


class SoftLabelMetrics:
    """Sums up each strategy's and task's soft labels over a window's examples that a teacher has supervised.

    Of strategies that learn the same tasks from the same teachers, only the first counts the teacher's labels. Late
    labels count too, because labels are only scored here and not learned from.

    Args:
        strategies: the student's, in the order of the file.
    """

    def __init__(self, strategies: Sequence[TransferStrategy]) -> None:
        # Sums stay on the device until the window ends, because reading a sum would wait for the device at every batch.
        self._sums: dict[tuple[int, str, str], Tensor] = {}
        self._waiting: dict[tuple[int, str, str], list[_Batch]] = {}
        taught = [(strategy.config.teachers, strategy.teacher_tasks) for strategy in strategies]
        self._first = {number for number, pair in enumerate(taught) if taught.index(pair) == number}

    @torch.no_grad()
    def add(
        self,
        number: int,
        teacher: TeacherOutput,
        labels: Mapping[str, Tensor],
        adapted: TeacherOutput | None,
        weights: Mapping[str, Tensor],
    ) -> None:
        """Counts a batch of a strategy, before it learns from it.

        Args:
            number: the strategy's position under ``transfer``.
            teacher: the teacher's output.
            labels: (B,) by task, NaN where a label is not known.
            weights: (B,) by task; a task without an entry has examples that each weigh 1.
            adapted: the teacher's output as the strategy corrects it; None for a strategy without an adapter.
        """
        scored: list[tuple[str, TeacherOutput]] = []
        if number in self._first:
            scored.append((TEACHER, teacher))
        if adapted is not None:
            scored.append((CORRECTED, adapted))
        for label, output in scored:
            for task, soft_B in output.probabilities.items():
                waiting = self._waiting.setdefault((number, label, task), [])
                waiting.append((soft_B, labels[task], teacher.hit[task], weights.get(task, _SINGLE).expand_as(soft_B)))
                if len(waiting) == _WAITING:
                    self._count((number, label, task))

    def _count(self, key: tuple[int, str, str]) -> None:
        """Adds the waiting batches to their sums."""
        soft, label, hit, weight = zip(*self._waiting[key], strict=True)
        sums = sum_scores(torch.cat(soft), torch.cat(label), torch.cat(hit), torch.cat(weight))
        self._sums[key] = self._sums[key] + sums if key in self._sums else sums
        self._waiting[key].clear()

    def counters(self) -> list[dict[str, Any]]:
        """Returns the sums as JSON, each with its strategy's position under ``transfer``."""
        for key, waiting in self._waiting.items():
            if waiting:
                self._count(key)
        counters = []
        for (number, label, task), sums in self._sums.items():
            examples, positives, loss, predicted = sums.tolist()
            moments = Moments(as_count(examples), as_count(positives), loss, predicted)
            counters.append({"transfer": number, "label": label, "task": task, **asdict(moments)})
        return counters


def sum_scores(soft_B: Tensor, label_B: Tensor, hit_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Returns examples, positives, log loss and predictions summed over the hits with a label, (4,) float64.

    Args:
        label_B: NaN where a label is not known.
        weight_B: the weight of each example; None where each weighs 1.
    """
    hit_B = hit_B & ~label_B.isnan()
    # float64, because float32 sums over a window lose small terms, and probabilities near 1 their logarithm.
    soft_B, label_B = soft_B.double(), label_B.double().nan_to_num(0.0)
    clipped_B = soft_B.clamp(CLIP, 1 - CLIP)
    likelihood_B = torch.where(label_B > 0, clipped_B, 1 - clipped_B)
    terms = [torch.ones_like(soft_B), label_B, -likelihood_B.log(), soft_B]
    return torch.stack(terms) @ (hit_B.double() if weight_B is None else hit_B * weight_B.double())
