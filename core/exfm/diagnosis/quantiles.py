"""Computes quantiles of an endless stream of positive numbers at constant memory.

Legend: E values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

_EDGES: Final = np.geomspace(1e-3, 1e9, 2401)
"""200 bins to a factor of ten, so that a quantile is right to 1.2%: from a thousandth to thirty years in seconds."""


class QuantileHistogram:
    """Counts positive numbers in bins of equal ratio.

    Attributes:
        counts: values below the first edge, between each two edges, and at or above the last.
    """

    def __init__(self) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros(_EDGES.size + 1, np.int64)

    def add(self, value_E: npt.NDArray[np.floating] | npt.NDArray[np.integer]) -> None:
        """Counts E more values."""
        self.counts += np.bincount(np.searchsorted(_EDGES, value_E, side="right"), minlength=self.counts.size)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())

    def quantiles(self, shares: Sequence[float]) -> list[float] | None:
        """Finds the lower edges of the bins in which the shares of the values are reached; None without values."""
        if not self.total:
            return None
        # At least half a value, so that a share of 0 is the lowest value and not the first bin.
        bins = np.searchsorted(np.cumsum(self.counts), np.maximum(np.array(shares) * self.total, 0.5), side="left")
        # Bin 0 lies below the first edge and has no lower edge: it takes the first.
        return [float(_EDGES[max(0, min(int(index), _EDGES.size) - 1)]) for index in bins]

    def quarters(self) -> list[float]:
        """Finds values that cut the stream in four quarters; fewer than three where many values are equal."""
        cuts = self.quantiles((0.25, 0.5, 0.75)) or []
        if not cuts:
            return []
        # A cut at the lowest bin leaves nothing below it.
        lowest = _EDGES[max(0, int(np.flatnonzero(self.counts)[0]) - 1)]
        return [cut for cut in dict.fromkeys(cuts) if cut > lowest]
