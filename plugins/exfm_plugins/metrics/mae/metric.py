"""The mean absolute error as an exfm metric."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

import exfm


class MAE(exfm.Metric):
    """Mean absolute error, in the unit of the label: ``mean(|prediction - y|)``.

    It is least for the median, so that a model of expected values is not the best by it where labels are skewed.
    """

    name: ClassVar[str] = "mae"
    label_kinds = frozenset({"regression"})

    def sums(self, rows: exfm.MetricRows) -> npt.NDArray[np.float64]:
        """Sums weights and absolute errors."""
        return np.array([rows.weight_E.sum(), np.abs(rows.prediction - rows.label_E) @ rows.weight_E])

    def value(self, sums_S: npt.NDArray[np.float64]) -> float | None:
        """Returns the mean."""
        return float(sums_S[1] / sums_S[0]) if sums_S[0] else None
