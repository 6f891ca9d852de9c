"""Top-k accuracy as an exfm metric.

Legend: E examples, C classes.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

import exfm


class TopK(exfm.Metric):
    """Share of the examples whose true class is among the k most probable; a tie counts by its expectation.

    Where ``t`` classes share the probability of the true class, and ``a`` are more probable, an example counts
    ``min(max((k - a) / t, 0), 1)``, the mean over all orders of the ``t``.
    """

    name: ClassVar[str] = "top_k"
    label_kinds = frozenset({"multiclass"})
    config: Config

    class Config(exfm.ComponentConfig):
        """Fields of `top_k`."""

        k: int = Field(5, gt=0, description="How many of the most probable classes count.")

    @property
    def title(self) -> str:
        """Names the figure with its k, such as top_5."""
        return f"top_{self.config.k}"

    def sums(self, rows: exfm.MetricRows) -> npt.NDArray[np.float64]:
        """Sums weights, and weights times the share that an example counts."""
        true_E1 = np.take_along_axis(rows.prediction, rows.label_E.astype(np.int64)[:, None], axis=1)
        above_E = (rows.prediction > true_E1).sum(axis=1)
        tied_E = (rows.prediction == true_E1).sum(axis=1)
        share_E = np.clip((self.config.k - above_E) / tied_E, 0, 1)
        return np.array([rows.weight_E.sum(), share_E @ rows.weight_E])

    def value(self, sums_S: npt.NDArray[np.float64]) -> float | None:
        """Returns the share."""
        return float(sums_S[1] / sums_S[0]) if sums_S[0] else None
