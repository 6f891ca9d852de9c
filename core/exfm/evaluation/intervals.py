"""NE gain of a model over its control, with an interval, and its share of the teacher's gain.

Legend: E and F examples, K buckets, n buckets that hold examples, R replicates.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from exfm.evaluation.metrics import Ints, entropy
from exfm.splitmix import splitmix64

Doubles = npt.NDArray[np.float64]

_BUCKETS: Final = 4096
_REPLICATES_AT_ONCE: Final = 64


class PairedLosses:
    """Log losses of a model and of its control on the same examples, summed in 4,096 buckets of groups.

    A group's examples depend on each other, so groups are what is resampled; dealing them into buckets keeps the
    state constant in size. States of disjoint parts of a stream add up.

    Attributes:
        sums_K2: summed log losses of model and control by bucket, nats.
        examples, positives: how many examples were compared, and how many of them are positive.
    """

    def __init__(self) -> None:
        self.sums_K2: Doubles = np.zeros((_BUCKETS, 2))
        self.examples = 0
        self.positives = 0

    def add(self, group_E: Ints, positive_E: npt.NDArray[np.bool_], model_E: Doubles, control_E: Doubles) -> None:
        """Adds the log losses (E,) of both on the same E examples, with the examples' groups and labels."""
        bucket_E = (splitmix64(group_E) >> np.uint64(64 - 12)).astype(np.int64)
        for column, loss_E in enumerate((model_E, control_E)):
            self.sums_K2[:, column] += np.bincount(bucket_E, weights=loss_E, minlength=_BUCKETS)
        self.examples += group_E.size
        self.positives += int(np.count_nonzero(positive_E))

    def __add__(self, other: PairedLosses) -> PairedLosses:
        total = PairedLosses()
        total.sums_K2 = self.sums_K2 + other.sums_K2
        total.examples = self.examples + other.examples
        total.positives = self.positives + other.positives
        return total

    @property
    def gain(self) -> float | None:
        """NE gain in percent, 100 (NE_control - NE_model) / NE_control; None where a class is missing.

        On the same examples the entropy in both NEs is the same and cancels: what is left are the losses.
        """
        if not 0 < self.positives < self.examples:
            return None
        model, control = self.sums_K2.sum(axis=0)
        return float(100 * (control - model) / control)

    @property
    def ne(self) -> tuple[float, float] | None:
        """Normalized entropies of model and control; None where a class is missing."""
        if not 0 < self.positives < self.examples:
            return None
        model, control = self.sums_K2.sum(axis=0) / self.examples / entropy(self.positives / self.examples)
        return float(model), float(control)

    def interval95(self, replicates: int = 2000, seed: int = 0) -> tuple[float, float] | None:
        """95% interval of the gain: paired percentile bootstrap over the buckets.

        None where ``gain`` is, and where all examples fall in one bucket: one group says nothing about others.
        """
        filled_n2 = self.sums_K2[self.sums_K2[:, 1] > 0]
        if self.gain is None or len(filled_n2) < 2:
            return None
        totals_R2 = _resampled_sums(filled_n2, replicates, np.random.default_rng(seed))
        gains_R = 100 * (totals_R2[:, 1] - totals_R2[:, 0]) / totals_R2[:, 1]
        low, high = np.quantile(gains_R, [0.025, 0.975])
        return float(low), float(high)


def _resampled_sums(sums_n2: Doubles, replicates: int, rng: np.random.Generator) -> Doubles:
    """Column sums over n rows drawn with replacement, (R, 2); a few replicates at a time, for the sake of memory."""
    n = len(sums_n2)
    parts = []
    for start in range(0, replicates, _REPLICATES_AT_ONCE):
        count = min(_REPLICATES_AT_ONCE, replicates - start)
        parts.append(sums_n2[rng.integers(n, size=(count, n))].sum(axis=1))
    return np.concatenate(parts)


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
    """Positions of the example ids that both arrays hold, in the left one's order. Ids are unique in each."""
    if np.array_equal(left_E, right_F):
        everything = np.arange(left_E.size)
        return everything, everything
    if right_F.size == 0:
        nothing = np.zeros(0, np.intp)
        return nothing, nothing
    order_F = np.argsort(right_F, kind="stable")
    position_E = np.minimum(np.searchsorted(right_F, left_E, sorter=order_F), right_F.size - 1)
    found_E = right_F[order_F[position_E]] == left_E
    return np.flatnonzero(found_E), order_F[position_E[found_E]]
