"""Computes the NE of a model's predictions after Platt's recalibration, sigmoid(scale * logit(p) + shift).

Scale and shift are fitted by maximum likelihood on the scored predictions themselves. Recalibration keeps the order of
the predictions, so it separates errors of their level and spread from errors of their order. The result is no
prediction, because the fit has seen the labels.

Legend: E examples, B bins, N weighted points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from exfm.evaluation.metrics import CLIP, Bools, Floats, Ints, entropy, logits

Doubles = npt.NDArray[np.float64]

_BINS: Final = 4096  # 1/127 wide: see ``LogitHistogram`` for the error
_LIMIT: Final = math.log((1 - CLIP) / CLIP)
"""The largest logit of a clipped probability, 16.1."""

_ROUNDING: Final = 1e-9
"""Means of equal logits, summed over many examples, differ by less."""

_MOST_STEPS: Final = 100
"""Newton's method takes about ten; classes that barely overlap take more."""


@dataclass(frozen=True)
class Recalibration:
    """Describes a monotone recalibration of a model's predictions of a task.

    Attributes:
        ne: normalized entropy of the recalibrated predictions, at most that of the predictions as they are.
        scale: factor of the logit, at least 0. Below 1 the predictions were too far apart, above 1 too close together.
        shift: summand of the scaled logit.
    """

    ne: float
    scale: float
    shift: float


class LogitHistogram:
    """Counts and sums logits by class in 4,096 bins 1/127 wide: an endless stream at constant memory.

    The fit replaces the examples of a class in a bin by their mean, which changes the log loss of a recalibration with
    scale a by less than 1e-5 a^2 nats. Histograms of disjoint stretches of a stream add up.

    Attributes:
        counts: (bins, 2), negatives and positives.
        logit_sums: (bins, 2), sums of their logits.
    """

    def __init__(self) -> None:
        self.counts: Ints | Doubles = np.zeros((_BINS, 2), np.int64)
        self.logit_sums: Doubles = np.zeros((_BINS, 2))

    def add(self, probability_E: Floats, label_E: Bools, weight_E: Floats | None = None) -> None:
        """Counts E more examples, or adds their weights, with probabilities clipped as in the log loss."""
        logit_E = logits(probability_E)
        bin_E = np.clip((logit_E + _LIMIT) * (_BINS / (2 * _LIMIT)), 0, _BINS - 1).astype(np.int64)
        cell_E = bin_E * 2 + label_E  # both classes in a single bincount
        if weight_E is not None:
            logit_E = logit_E * weight_E
        self.counts = self.counts + np.bincount(cell_E, weights=weight_E, minlength=2 * _BINS).reshape(-1, 2)
        self.logit_sums += np.bincount(cell_E, weights=logit_E, minlength=2 * _BINS).reshape(-1, 2)

    def __add__(self, other: LogitHistogram) -> LogitHistogram:
        total = LogitHistogram()
        total.counts = self.counts + other.counts
        total.logit_sums = self.logit_sums + other.logit_sums
        return total

    def recalibration(self) -> Recalibration | None:
        """Fits the recalibration with the least log loss among those with a scale of at least 0.

        Returns None where no recalibration is best: a class is missing, or no negative lies above a positive, where
        every larger scale fits better.
        """
        negatives, positives = self.counts.sum(axis=0)
        if not negatives or not positives:
            return None
        bin_N, label_N = np.nonzero(self.counts)
        count_N = self.counts[bin_N, label_N].astype(np.float64)
        logit_N = self.logit_sums[bin_N, label_N] / count_N
        positive_N = label_N == 1
        constant = math.log(positives / negatives)
        scale, shift = 0.0, constant
        # The likelihood is concave: where a steeper line through the base rate does not raise it, 0 is the best scale.
        mean = logit_N @ count_N / count_N.sum()
        mean_positive = logit_N[positive_N] @ count_N[positive_N] / positives
        if mean_positive - mean > _ROUNDING:
            if logit_N[~positive_N].max() <= logit_N[positive_N].min():
                return None
            scale, shift = _fit(logit_N, count_N, positive_N, constant)
        loss = _loss(logit_N, count_N, positive_N, scale, shift) / (negatives + positives)
        return Recalibration(float(loss / entropy(positives / (negatives + positives))), scale, shift)


def _fit(logit_N: Doubles, count_N: Doubles, positive_N: Bools, constant: float) -> tuple[float, float]:
    """Fits scale and shift by Newton's method from the base rate, halving each step until the loss falls."""
    center = float(logit_N @ count_N / count_N.sum())
    z_N = logit_N - center  # the mean is taken out for the conditioning of the Hessian
    scale, shift = 0.0, constant
    loss = _loss(z_N, count_N, positive_N, scale, shift)
    for _ in range(_MOST_STEPS):
        p_N = np.exp(-np.logaddexp(0, -(scale * z_N + shift)))  # a sigmoid without overflow
        error_N, weight_N = count_N * (p_N - positive_N), count_N * p_N * (1 - p_N)
        gradient = np.array([error_N @ z_N, error_N.sum()])
        mixed = weight_N @ z_N
        hessian = np.array([[weight_N @ z_N**2, mixed], [mixed, weight_N.sum()]])
        # Least squares, because the Hessian is singular where every p rounds to 0 or 1.
        step = np.linalg.lstsq(hessian, gradient, rcond=None)[0]
        size = 1.0
        # 20 halvings: a shorter step changes the loss by less than rounding does.
        while size > 1e-6:
            next_scale, next_shift = scale - size * step[0], shift - size * step[1]
            next_loss = _loss(z_N, count_N, positive_N, next_scale, next_shift)
            if next_loss < loss:
                break
            size /= 2
        else:
            break  # no step lowers the loss: the optimum, to rounding
        scale, shift, loss = float(next_scale), float(next_shift), next_loss
    return scale, shift - scale * center


def _loss(logit_N: Doubles, count_N: Doubles, positive_N: Bools, scale: float, shift: float) -> float:
    """Computes the log loss of N recalibrated points, summed over their counts, in nats."""
    recalibrated_N = scale * logit_N + shift
    return float(count_N @ np.logaddexp(0, np.where(positive_N, -recalibrated_N, recalibrated_N)))
