"""Counts the examples of a window, and sums their prequential losses, predictions and labels by task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from exfm.evaluation.metrics import Moments
from exfm.interfaces.schema import LabelKind
from exfm.supervision.coverage import Coverage
from exfm.transfer.soft_label_metrics import moments_of, sum_scores


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

    def add_scores(self, sums: Mapping[str, Tensor], kinds: Mapping[str, LabelKind]) -> None:
        """Adds sums of ``task_sums``, by task."""
        for task, counted in sums.items():
            self.scores[task] = self.scores.get(task, Moments()) + moments_of(counted, kinds[task])


def task_sums(
    predictions: Mapping[str, Tensor],
    labels: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    kinds: Mapping[str, LabelKind],
) -> dict[str, Tensor]:
    """Sums examples, losses, predictions and labels, float64 by task, as ``sum_scores`` does."""
    sums: dict[str, Tensor] = {}
    for task, predicted in predictions.items():
        every_B = torch.ones_like(labels[task], dtype=torch.bool)
        # NaN and infinity are counted and refused elsewhere.
        finite = predicted.nan_to_num(0.5, 0.5, 0.5)
        sums[task] = sum_scores(finite, labels[task], every_B, weights.get(task), kinds[task])
    return sums
