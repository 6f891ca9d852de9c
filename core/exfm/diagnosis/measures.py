"""Accumulates the figures of a diagnosis in sums of constant size; sums of disjoint rows add up.

Legend: E examples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from exfm.diagnosis.taught_rows import Doubles, TaughtRows
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.metrics import Bools, Moments, log_losses, logits
from exfm.evaluation.recalibration import LogitHistogram, Recalibration

IDENTITY: Final = Recalibration(ne=math.nan, scale=1.0, shift=0.0)
"""Leaves predictions as they are, where a missing class allows no fit."""


def recalibrated(probability_E: Doubles, fit: Recalibration) -> Doubles:
    """Applies a Platt recalibration to probabilities (E,); NaN stays NaN."""
    return np.asarray(1 / (1 + np.exp(-(fit.scale * logits(probability_E) + fit.shift))))


class Predictions:
    """Accumulates level and recalibration of a model's predictions of a task."""

    def __init__(self) -> None:
        self.moments = Moments()
        self.histogram = LogitHistogram()

    def add(self, probability_E: Doubles, label_E: Bools) -> None:
        """Adds E examples."""
        self.moments += Moments.from_predictions(probability_E, label_E)
        self.histogram.add(probability_E, label_E)

    @property
    def fit(self) -> Recalibration:
        """The recalibration with the least log loss; the identity where none is best."""
        return self.histogram.recalibration() or IDENTITY


@dataclass
class Agreement:
    """Measures whether the gradients of labels and of teacher point the same direction.

    The gradient of the log loss at the student's logit is ``s - y`` for the label and ``s - t`` for the soft label.

    Attributes:
        same: examples on which both have the same sign.
        products, label_squares, teacher_squares: sums of ``(y - s)(t - s)`` and of both squares.
    """

    examples: int = 0
    same: int = 0
    products: float = 0.0
    label_squares: float = 0.0
    teacher_squares: float = 0.0

    def add(self, label_E: Bools, student_E: Doubles, teacher_E: Doubles) -> None:
        """Adds E examples."""
        # Descent directions, which is the negative of both gradients: products and squares are the same.
        label_pull_E, teacher_pull_E = label_E - student_E, teacher_E - student_E
        self.examples += label_E.size
        self.same += int(np.count_nonzero(label_pull_E * teacher_pull_E > 0))
        self.products += float(label_pull_E @ teacher_pull_E)
        self.label_squares += float(label_pull_E @ label_pull_E)
        self.teacher_squares += float(teacher_pull_E @ teacher_pull_E)

    @property
    def sign_share(self) -> float | None:
        """Share of the examples on which both gradients have the same sign."""
        return self.same / self.examples if self.examples else None

    @property
    def cosine(self) -> float | None:
        """Cosine of both gradients; None where either is zero."""
        size = math.sqrt(self.label_squares * self.teacher_squares)
        return self.products / size if size else None

    @property
    def confirmed(self) -> float | None:
        """Share of the teacher's disagreement with the student that the labels confirm.

        The slope of ``y - s`` on ``t - s``: 1 where the teacher is right whenever it differs, 0 where it differs at
        random, negative where the student is right. Unlike the cosine it does not shrink with the labels' chance.
        """
        return self.products / self.teacher_squares if self.teacher_squares else None


@dataclass
class Movement:
    """Measures how far transfer has moved a student from its control towards its teacher, in logits.

    The slope of ``logit s - logit c`` on ``logit t - logit c``: 0 where the student is its control, 1 where it is its
    teacher.
    """

    products: float = 0.0
    squares: float = 0.0

    def add(self, student_E: Doubles, control_E: Doubles, teacher_E: Doubles) -> None:
        """Adds E examples."""
        control_logit_E = logits(control_E)
        towards_E = logits(teacher_E) - control_logit_E
        self.products += float((logits(student_E) - control_logit_E) @ towards_E)
        self.squares += float(towards_E @ towards_E)

    @property
    def slope(self) -> float | None:
        """Slope of the movement; None where teacher and control are the same."""
        return self.products / self.squares if self.squares else None


def add_losses(losses: PairedLosses, rows: TaughtRows, model_E: Doubles, baseline_E: Doubles) -> None:
    """Adds the log losses of two predictions of the rows."""
    losses.add(rows.group, rows.label, log_losses(model_E, rows.label), log_losses(baseline_E, rows.label))
