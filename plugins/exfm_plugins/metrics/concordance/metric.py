"""Concordance as an exfm metric.

Legend: E examples, P pairs.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

import exfm


class Concordance(exfm.Metric):
    """Share of pairs of examples with different labels that predictions rank as labels do; a tie counts 1/2.

    For numbers it is what AUC is for 0 and 1: 0.5 is chance, and ``2 C - 1`` is Somers' D, Kendall's rank correlation
    without ties of labels. All pairs would be their number squared: each example is compared with the next ``pairs`` of
    its window, so that the figure is an estimate from examples of about the same time. A pair weighs the product of its
    weights.
    """

    name: ClassVar[str] = "concordance"
    label_kinds = frozenset({"regression"})
    config: Config

    class Config(exfm.ComponentConfig):
        """Fields of `concordance`."""

        pairs: int = Field(16, gt=0, le=1_000, description="How many of the next examples each is compared with.")

    def sums(self, rows: exfm.MetricRows) -> npt.NDArray[np.float64]:
        """Sums weights of pairs, and of those that are ranked alike."""
        total = np.zeros(2)
        for distance in range(1, min(self.config.pairs, rows.label_E.size - 1) + 1):
            label_P = np.sign(rows.label_E[distance:] - rows.label_E[:-distance])
            ranked_P = np.sign(rows.prediction[distance:] - rows.prediction[:-distance])
            weight_P = rows.weight_E[distance:] * rows.weight_E[:-distance] * (label_P != 0)
            total += [weight_P.sum(), ((1 + label_P * ranked_P) / 2) @ weight_P]
        return total

    def value(self, sums_S: npt.NDArray[np.float64]) -> float | None:
        """Returns the share; None where all compared labels are alike."""
        return float(sums_S[1] / sums_S[0]) if sums_S[0] else None
