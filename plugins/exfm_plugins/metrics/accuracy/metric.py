"""Accuracy as an exfm metric.

Legend: E examples, C classes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

import exfm


class Accuracy(exfm.Metric):
    """Share of the examples whose most probable class is the true class; of equal probabilities the first class."""

    name: ClassVar[str] = "accuracy"
    label_kinds = frozenset({"multiclass"})

    def sums(self, rows: exfm.MetricRows) -> npt.NDArray[np.float64]:
        """Sums weights, and those of the examples that are right."""
        is_right_E = rows.prediction.argmax(axis=1) == rows.label_E
        return np.array([rows.weight_E.sum(), rows.weight_E[is_right_E].sum()])

    def value(self, sums_S: npt.NDArray[np.float64]) -> float | None:
        """Returns the share."""
        return float(sums_S[1] / sums_S[0]) if sums_S[0] else None
