"""Computes log loss, normalized entropy, calibration and AUC with pure functions, and float64 states that add up.

States are constant in size whatever the length of the stream; two states of disjoint stretches add up to the state of
both.

Legend: E examples, K distinct scores or bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from operator import add
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

CLIP: Final = 1e-7  # about where float32 ends next to 1
_MANTISSA_BITS_DROPPED: Final = 9  # of float32's 23: leaves 2^14 bins to each halving of the probability


def log_losses(probability_E: Floats, label_E: Bools) -> npt.NDArray[np.float64]:
    """Computes the log loss of each example in nats, (E,).

    Probabilities are clipped to [1e-7, 1 - 1e-7], so that a single confident mistake costs at most 16.1 nats instead
    of infinitely many.
    """
    # float64, because 1 - 1e-7 is not a float32: it would round to 1 - 1.2e-7.
    p_E = np.clip(probability_E.astype(np.float64), CLIP, 1 - CLIP)
    return -np.log(np.where(label_E, p_E, 1 - p_E))


def logits(probability_E: Floats) -> npt.NDArray[np.float64]:
    """Computes logits of probabilities, (E,), clipped as in the log loss."""
    p_E = np.clip(probability_E.astype(np.float64), CLIP, 1 - CLIP)
    return np.asarray(np.log(p_E) - np.log1p(-p_E))


def entropy(rate: float) -> float:
    """Computes the entropy of a share of positives in nats: the log loss of always predicting that share."""
    return -sum(p * math.log(p) for p in (rate, 1 - rate) if p > 0)


def as_count(total: float) -> float:
    """Returns a sum of weights as an integer where it is one: examples that each weigh 1 are counted."""
    return int(total) if total == int(total) else total


def auc(probability_E: Floats, label_E: Bools, weight_E: Floats | None = None) -> float | None:
    """Computes the exact AUC of examples in memory by sorting; a tie counts 1/2. None where a class is missing."""
    distinct, rank_E = np.unique(probability_E, return_inverse=True)
    counts = np.bincount(rank_E * 2 + label_E, weights=weight_E, minlength=2 * distinct.size)
    return _auc_of_counts(counts.reshape(-1, 2))


def _auc_of_counts(counts_K2: Ints | Floats) -> float | None:
    """Computes the AUC of K ascending scores with (negatives, positives) each."""
    # float64, because the number of pairs overflows int64 beyond some billion examples of each class.
    negatives_K, positives_K = counts_K2.T.astype(np.float64)
    pairs = negatives_K.sum() * positives_K.sum()
    if pairs == 0:
        return None
    negatives_below_K = np.cumsum(negatives_K) - negatives_K
    return float(positives_K @ (negatives_below_K + negatives_K / 2) / pairs)


@dataclass(frozen=True)
class Moments:
    """Sums losses, predictions and labels, for log loss, NE, calibration and base rate.

    A figure without a meaning (no examples) is None. Where examples have weights, all are sums over the weights.

    Attributes:
        loss_sum: sum of the examples' log losses, nats.
        prediction_sum: sum of the predicted probabilities.
    """

    examples: float = 0
    positives: float = 0
    loss_sum: float = 0.0
    prediction_sum: float = 0.0

    @property
    def labels(self) -> tuple[Any, ...]:
        """The sums of the labels, which are equal for models that have predicted the same examples."""
        return self.examples, self.positives

    @classmethod
    def from_predictions(cls, probability_E: Floats, label_E: Bools, weight_E: Floats | None = None) -> Self:
        """Sums over E examples; each weighs 1 by default."""
        if weight_E is not None:
            weight_E = weight_E.astype(np.float64)
            return cls(
                examples=as_count(float(weight_E.sum())),
                positives=as_count(float(weight_E[label_E].sum())),
                loss_sum=float(log_losses(probability_E, label_E) @ weight_E),
                prediction_sum=float(probability_E.astype(np.float64) @ weight_E),
            )
        return cls(
            examples=label_E.size,
            positives=int(np.count_nonzero(label_E)),
            loss_sum=float(log_losses(probability_E, label_E).sum()),
            # float64, because a float32 sum of millions of small probabilities loses digits.
            prediction_sum=float(probability_E.sum(dtype=np.float64)),
        )

    def __add__(self, other: Moments) -> Moments:
        # Sums begin without examples, before it is known of which kind of label they are.
        if type(other) is not type(self):
            assert not self.examples or not other.examples, f"{self} + {other}"
            return self if self.examples else other
        sums: list[Any] = []
        for field in fields(self):
            mine, others = getattr(self, field.name), getattr(other, field.name)
            sums.append(tuple(map(add, mine, others)) if isinstance(mine, tuple) else mine + others)
        return type(self)(*sums)

    @property
    def base_rate(self) -> float | None:
        """Share of positives."""
        return self.positives / self.examples if self.examples else None

    @property
    def log_loss(self) -> float | None:
        """Mean log loss, nats per example."""
        return self.loss_sum / self.examples if self.examples else None

    @property
    def baseline(self) -> float | None:
        """Mean loss of the best constant prediction, the base rate's entropy in nats; None where a class is missing."""
        if not 0 < self.positives < self.examples:
            return None
        return entropy(self.positives / self.examples)

    @property
    def ne(self) -> float | None:
        """Normalized entropy (He et al. 2014): loss / that of the best constant. None where labels are all alike."""
        baseline = self.baseline
        return None if baseline is None else self.loss_sum / self.examples / baseline

    @property
    def calibration(self) -> float | None:
        """Predicted positives over positives; 1 is right on average. None without positives."""
        return self.prediction_sum / self.positives if self.positives else None

    @property
    def fewest(self) -> float:
        """The weight of the examples of the rarer outcome, or of those predicted where that is more likely."""
        # Predicted labels count too: some thousand examples without any positive have a broken label.
        positives = max(self.positives, self.prediction_sum)
        negatives = self.examples - min(self.positives, self.prediction_sum)
        return min(positives, negatives)

    def gain_percent(self, control: Moments) -> float | None:
        """Returns the NE gain over a control; None if it has predicted other labels, or has no loss to reduce."""
        if self.labels != control.labels or not control.loss_sum:
            return None
        return 100 * (1 - self.loss_sum / control.loss_sum)


class AucHistogram:
    """Counts both classes in 730,000 fixed bins of the probability: AUC of an endless stream at constant memory.

    Bins are floating point numbers with fewer digits, mirrored at 1/2: 16,384 to each halving of p (or of 1 - p), so
    that they are as fine at a click rate of 0.001 as at 0.5. Scores in the same bin count as tied, as do all below
    1e-7 and all above 1 - 1e-7; ``error_bound`` bounds the effect on the AUC.

    Attributes:
        counts: (bins, 2), negatives and positives.
    """

    def __init__(self) -> None:
        self.counts: Ints | npt.NDArray[np.float64] = np.zeros((_BINS, 2), dtype=np.int64)

    def add(self, probability_E: Floats, label_E: Bools, weight_E: Floats | None = None) -> None:
        """Counts E more examples, or adds their weights."""
        if weight_E is not None:
            self.counts = self.counts.astype(np.float64, copy=False)
        # In place, because passing over all bins takes longer than counting the examples of a chunk.
        amount = 1 if weight_E is None else weight_E
        np.add.at(self.counts.reshape(-1), _bin(probability_E) * 2 + label_E, amount)

    def __add__(self, other: AucHistogram) -> AucHistogram:
        total = AucHistogram()
        total.counts = self.counts + other.counts
        return total

    @property
    def auc(self) -> float | None:
        """AUC, where a tie counts 1/2; None where a class is missing."""
        return _auc_of_counts(self._used_bins())

    @property
    def error_bound(self) -> float | None:
        """Largest possible distance of the exact AUC from ``auc``: half the share of pairs that share a bin."""
        negatives, positives = self._used_bins().T.astype(np.float64)
        pairs = negatives.sum() * positives.sum()
        return float(negatives @ positives / pairs / 2) if pairs else None

    def _used_bins(self) -> Ints | npt.NDArray[np.float64]:
        """Selects the bins with examples: most have none, and change no figure."""
        used: Ints | npt.NDArray[np.float64] = self.counts[(self.counts != 0).any(axis=1)]
        return used


def _coarse_bits(p_E: npt.NDArray[np.float32]) -> Ints:
    # The bits of non-negative floats are ordered as the floats are, so their highest bits are ascending bins.
    return (p_E.view(np.uint32) >> _MANTISSA_BITS_DROPPED).astype(np.int64)


_LOWEST: Final = int(_coarse_bits(np.array([CLIP], np.float32))[0])
_HALF: Final = int(_coarse_bits(np.array([0.5], np.float32))[0]) - _LOWEST
_BINS: Final = 2 * (_HALF + 1)


def _bin(probability_E: Floats) -> Ints:
    """Computes the bin of each probability, ascending."""
    p_E = probability_E.astype(np.float32)
    upper_E = p_E > 0.5
    # 1 - p is exact in float32 for p >= 1/2 (Sterbenz): both ends of the unit interval are resolved alike.
    near_E = np.where(upper_E, np.float32(1) - p_E, p_E)
    index_E = _coarse_bits(np.maximum(near_E, np.float32(CLIP))) - _LOWEST
    return np.where(upper_E, _BINS - 1 - index_E, index_E)
