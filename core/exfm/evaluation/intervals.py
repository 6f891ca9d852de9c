"""Computes the NE gain of a model over its control, with an interval, and its share of the teacher's gain.

Legend: E and F examples, K buckets, n buckets that hold examples, R replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from exfm.evaluation.label_kinds import Labels, label_moments
from exfm.evaluation.metrics import Floats, Ints, Moments
from exfm.interfaces.schema import LabelKind
from exfm.splitmix import splitmix64

Doubles = npt.NDArray[np.float64]

_BUCKETS: Final = 4096  # 2^12: the highest 12 bits of a hash are the bucket
# The bootstrap gathers this many times 4,096 pairs of float64 at once: 4 MiB.
_REPLICATES_AT_ONCE: Final = 64


class PairedLosses:
    """Sums losses of a model and of its control on the same examples, in 4,096 buckets of groups.

    The bootstrap resamples groups, because the examples of a group depend on each other. Hashing groups into buckets
    keeps the state constant in size. States of disjoint stretches of a stream add up.

    Attributes:
        sums_K2: summed losses of model and control by bucket; log losses in nats.
        examples: number of compared examples.
        labels: sums of the labels of the compared examples, by their weights.
    """

    def __init__(self) -> None:
        self.sums_K2: Doubles = np.zeros((_BUCKETS, 2))
        self.examples = 0
        self.labels = Moments()

    def add(
        self,
        group_E: Ints,
        label_E: Labels,
        model_E: Doubles,
        control_E: Doubles,
        weight_E: Floats | None = None,
        kind: LabelKind = "binary",
        classes: int = 1,
    ) -> None:
        """Adds the losses (E,) of model and control on the same E examples, with groups, labels and weights."""
        bucket_E = (splitmix64(group_E) >> np.uint64(64 - 12)).astype(np.int64)
        for column, loss_E in enumerate((model_E, control_E)):
            weighted_E = loss_E if weight_E is None else loss_E * weight_E
            self.sums_K2[:, column] += np.bincount(bucket_E, weights=weighted_E, minlength=_BUCKETS)
        self.examples += group_E.size
        self.labels += label_moments(kind, classes, label_E, weight_E)

    def __add__(self, other: PairedLosses) -> PairedLosses:
        total = PairedLosses()
        total.sums_K2 = self.sums_K2 + other.sums_K2
        total.examples = self.examples + other.examples
        total.labels = self.labels + other.labels
        return total

    @property
    def positives(self) -> float:
        """Sum of the weights of the positive examples of a binary label."""
        return self.labels.positives

    @property
    def gain(self) -> float | None:
        """NE gain in percent, 100 (NE_control - NE_model) / NE_control; None where all labels are alike.

        On the same examples both NEs have the same denominator, which cancels: the gain depends on the losses alone.
        """
        model, control = self.sums_K2.sum(axis=0)
        if self.labels.baseline is None or control == 0:
            return None
        return float(100 * (control - model) / control)

    @property
    def ne(self) -> tuple[float, float] | None:
        """Normalized entropies of model and control; None where all labels are alike."""
        baseline = self.labels.baseline
        if baseline is None:
            return None
        model, control = self.sums_K2.sum(axis=0) / self.labels.examples / baseline
        return float(model), float(control)

    def interval95(self, replicates: int = 2000, seed: int = 0) -> tuple[float, float] | None:
        """Computes the 95% interval of the gain: a paired percentile bootstrap over the buckets.

        None where ``gain`` is None, and where all examples fall in a single bucket: a single group says nothing about
        other groups.
        """
        # Empty buckets are no groups: resampling them would widen the interval of a small model. A loss is hardly
        # ever zero, so a bucket with examples has a positive sum.
        filled_n2 = self.sums_K2[self.sums_K2[:, 1] > 0]
        if self.gain is None or len(filled_n2) < 2:
            return None
        totals_R2 = _resampled_sums(filled_n2, replicates, np.random.default_rng(seed))
        gains_R = 100 * (totals_R2[:, 1] - totals_R2[:, 0]) / totals_R2[:, 1]
        low, high = np.quantile(gains_R, [0.025, 0.975])
        return float(low), float(high)


def _resampled_sums(sums_n2: Doubles, replicates: int, rng: np.random.Generator) -> Doubles:
    """Sums columns over n rows drawn with replacement, (R, 2); a few replicates at a time, to bound the memory."""
    n = len(sums_n2)
    totals = []
    for start in range(0, replicates, _REPLICATES_AT_ONCE):
        count = min(_REPLICATES_AT_ONCE, replicates - start)
        totals.append(sums_n2[rng.integers(n, size=(count, n))].sum(axis=1))
    return np.concatenate(totals)


def gain_share(
    student: PairedLosses, teacher: PairedLosses, teacher_interval95: Sequence[float] | None
) -> float | None:
    """Divides the student's NE gain over a control by the teacher's gain over the same control.

    Both must have been compared on the same examples. None where the teacher is not clearly better than the control,
    its interval excluding zero: there is nothing to transfer, and a ratio to noise would mislead.
    """
    if student.gain is None or teacher.gain is None or teacher_interval95 is None or teacher_interval95[0] <= 0:
        return None
    return student.gain / teacher.gain


def match(left_E: Ints, right_F: Ints) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Finds the positions of the example ids that both arrays hold, in the order of the left array.

    Ids are unique in each array.
    """
    # A model and its control usually predict the same rows in the same order: then there is nothing to sort.
    if np.array_equal(left_E, right_F):
        everything = np.arange(left_E.size)
        return everything, everything
    if right_F.size == 0:
        nothing = np.zeros(0, np.intp)
        return nothing, nothing
    order_F = np.argsort(right_F, kind="stable")
    # An id above all others would be inserted past the end; clipped, it fails the comparison below.
    position_E = np.minimum(np.searchsorted(right_F, left_E, sorter=order_F), right_F.size - 1)
    is_match_E = right_F[order_F[position_E]] == left_E
    return np.flatnonzero(is_match_E), order_F[position_E[is_match_E]]
