"""The root of the mean squared error as an exfm metric."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

import exfm


class RMSE(exfm.Metric):
    """Root of the mean squared error, in the unit of the label: ``sqrt(mean((prediction - y)^2))``."""

    name: ClassVar[str] = "rmse"
    label_kinds = frozenset({"regression"})

    def sums(self, rows: exfm.MetricRows) -> npt.NDArray[np.float64]:
        """Sums weights and squared errors."""
        return np.array([rows.weight_E.sum(), np.square(rows.prediction - rows.label_E) @ rows.weight_E])

    def value(self, sums_S: npt.NDArray[np.float64]) -> float | None:
        """Returns the root of the mean."""
        return math.sqrt(sums_S[1] / sums_S[0]) if sums_S[0] else None
