"""Log loss, normalized entropy, calibration and AUC: pure functions, and float64 states that add up.

Legend: E examples. A state of constant size is kept whatever the length of the stream; two states of disjoint parts
add up to the state of the whole.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

CLIP: Final = 1e-7
_MANTISSA_BITS_DROPPED: Final = 9


def log_losses(probability_E: Floats, label_E: Bools) -> npt.NDArray[np.float64]:
    """Log loss of each example in nats, (E,).

    Probabilities are clipped to [1e-7, 1 - 1e-7], about where float32 ends next to 1: one confident mistake costs at
    most 16.1 nats instead of infinitely many.
    """
    p_E = np.clip(probability_E.astype(np.float64), CLIP, 1 - CLIP)
    return -np.log(np.where(label_E, p_E, 1 - p_E))


def logits(probability_E: Floats) -> npt.NDArray[np.float64]:
    """Computes logits of probabilities, (E,), clipped as those of the log loss are."""
    p_E = np.clip(probability_E.astype(np.float64), CLIP, 1 - CLIP)
    return np.asarray(np.log(p_E) - np.log1p(-p_E))


def entropy(rate: float) -> float:
    """Entropy of a coin in nats: the log loss of always predicting ``rate`` where that is the share of positives."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)


def auc(probability_E: Floats, label_E: Bools) -> float | None:
    """Exact AUC, a tie counting one half; None where a class is missing. Sorts: for data that is held in memory."""
    distinct, rank_E = np.unique(probability_E, return_inverse=True)
    return _auc_of_counts(np.bincount(rank_E * 2 + label_E, minlength=2 * distinct.size).reshape(-1, 2))


def _auc_of_counts(counts_K2: Ints) -> float | None:
    """AUC of K ascending scores with (negatives, positives) each."""
    negatives_K, positives_K = counts_K2.T.astype(np.float64)
    pairs = negatives_K.sum() * positives_K.sum()
    if pairs == 0:
        return None
    negatives_below_K = np.cumsum(negatives_K) - negatives_K
    return float(positives_K @ (negatives_below_K + negatives_K / 2) / pairs)


@dataclass(frozen=True)
class Moments:
    """The sums behind log loss, NE, calibration and base rate. None where a figure has no meaning (no examples).

    Attributes:
        loss_sum: sum of the examples' log losses, nats.
        prediction_sum: sum of the predicted probabilities.
    """

    examples: int = 0
    positives: int = 0
    loss_sum: float = 0.0
    prediction_sum: float = 0.0

    @classmethod
    def of(cls, probability_E: Floats, label_E: Bools) -> Self:
        """The sums over E examples."""
        return cls(
            examples=label_E.size,
            positives=int(np.count_nonzero(label_E)),
            loss_sum=float(log_losses(probability_E, label_E).sum()),
            prediction_sum=float(probability_E.sum(dtype=np.float64)),
        )

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.examples + other.examples,
            self.positives + other.positives,
            self.loss_sum + other.loss_sum,
            self.prediction_sum + other.prediction_sum,
        )

    @property
    def base_rate(self) -> float | None:
        """Share of positives."""
        return self.positives / self.examples if self.examples else None

    @property
    def log_loss(self) -> float | None:
        """Mean log loss, nats per example."""
        return self.loss_sum / self.examples if self.examples else None

    @property
    def ne(self) -> float | None:
        """Normalized entropy (He et al. 2014): log loss / entropy of the base rate. None where a class is missing."""
        if not 0 < self.positives < self.examples:
            return None
        return self.loss_sum / self.examples / entropy(self.positives / self.examples)

    @property
    def calibration(self) -> float | None:
        """Predicted positives over positives; 1 is right on average. None without positives."""
        return self.prediction_sum / self.positives if self.positives else None


class AucHistogram:
    """AUC of an endless stream at constant memory: counts of both classes in 730,000 fixed bins of the probability.

    Bins are floating point numbers with fewer digits, mirrored at 1/2: 16,384 to each halving of p (or of 1 - p), so
    that they are as fine for a click rate of 0.001 as for one of 0.5. Scores in one bin count as tied, as do all below
    1e-7 and all above 1 - 1e-7; ``error_bound`` says what that can have changed.

    Attributes:
        counts: (bins, 2), negatives and positives.
    """

    def __init__(self) -> None:
        self.counts: Ints = np.zeros((_BINS, 2), dtype=np.int64)

    def add(self, probability_E: Floats, label_E: Bools) -> None:
        """Counts E more examples."""
        self.counts += np.bincount(_bin(probability_E) * 2 + label_E, minlength=2 * _BINS).reshape(-1, 2)

    def __add__(self, other: AucHistogram) -> AucHistogram:
        total = AucHistogram()
        total.counts = self.counts + other.counts
        return total

    @property
    def auc(self) -> float | None:
        """AUC, a tie counting one half; None where a class is missing."""
        return _auc_of_counts(self.counts)

    @property
    def error_bound(self) -> float | None:
        """The furthest the exact AUC can be from ``auc``: half the share of pairs whose two scores share a bin."""
        negatives, positives = self.counts.T.astype(np.float64)
        pairs = negatives.sum() * positives.sum()
        return float(negatives @ positives / pairs / 2) if pairs else None


def _coarse_bits(p_E: npt.NDArray[np.float32]) -> Ints:
    return (p_E.view(np.uint32) >> _MANTISSA_BITS_DROPPED).astype(np.int64)


_LOWEST: Final = int(_coarse_bits(np.array([CLIP], np.float32))[0])
_HALF: Final = int(_coarse_bits(np.array([0.5], np.float32))[0]) - _LOWEST
_BINS: Final = 2 * (_HALF + 1)


def _bin(probability_E: Floats) -> Ints:
    """Bin of each probability, ascending."""
    p_E = probability_E.astype(np.float32)
    upper_E = p_E > 0.5
    # 1 - p is exact in float32 for p >= 1/2: both ends of the unit interval are resolved alike.
    near_E = np.where(upper_E, np.float32(1) - p_E, p_E)
    index_E = _coarse_bits(np.maximum(near_E, np.float32(CLIP))) - _LOWEST
    return np.where(upper_E, _BINS - 1 - index_E, index_E)
