"""Counts the examples of a window, and sums their prequential losses, predictions and labels by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exfm.evaluation.metrics import Moments, as_count
from exfm.supervision.coverage import Coverage
from exfm.transfer.soft_label_metrics import sum_scores


@dataclass
class WindowCounters:
    """Counts the examples of a window and their loss.

    Attributes:
        scores: sums over the examples' predictions, by task.
        flops: per example, by part of the model.
        teachers: counts of the supervision that was joined, by teacher.
    """

    examples: int = 0
    seconds: float = 0.0
    scores: dict[str, Moments] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    teachers: dict[str, Coverage] = field(default_factory=dict)

    @property
    def ne(self) -> float | None:
        """Returns the normalized entropy of the first task so far; None until both classes have been seen."""
        first = next(iter(self.scores.values()), Moments())
        return first.ne

    def add_scores(self, sums: Mapping[str, Tensor]) -> None:
        """Adds sums of ``task_sums``, (4,) by task."""
        for task, counted in sums.items():
            self.scores[task] = self.scores.get(task, Moments()) + moments_of(counted)


def task_sums(
    probabilities: Mapping[str, Tensor], labels: Mapping[str, Tensor], weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Sums examples, positives, log losses and predictions, (4,) float64 by task."""
    sums: dict[str, Tensor] = {}
    for task, predicted in probabilities.items():
        # NaN is counted and refused elsewhere.
        every_B = torch.ones_like(predicted, dtype=torch.bool)
        sums[task] = sum_scores(predicted.nan_to_num(0.5), labels[task], every_B, weights.get(task))
    return sums


def moments_of(sums: Tensor) -> Moments:
    """Converts the sums of a task, (4,) of ``task_sums``."""
    examples, positives, loss, predicted = sums.tolist()
    return Moments(as_count(examples), as_count(positives), loss, predicted)
