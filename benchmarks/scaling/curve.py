"""A power law through points of FLOPs and distance to the Bayes NE, and its plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from scipy import stats

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Blue, orange and green of Okabe and Ito, and a marker each: told apart without colour too.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"))


class Point(NamedTuple):
    """A run: forward FLOPs per example, and NE less Bayes NE."""

    flops: float
    above: float


@dataclass(frozen=True)
class PowerLaw:
    """``above = scale * flops^-exponent``, with the half-width of the exponent's 95% interval."""

    scale: float
    exponent: float
    margin: float

    def at(self, flops: np.ndarray) -> np.ndarray:
        """The distance to the Bayes NE at these FLOPs."""
        return np.asarray(self.scale * flops**-self.exponent)

    def __str__(self) -> str:
        low, high = self.exponent - self.margin, self.exponent + self.margin
        return f"exponent {self.exponent:.3f}, 95% interval {low:.3f} to {high:.3f}"


def fit(points: Sequence[Point]) -> PowerLaw:
    """Least squares of the logarithms; the interval is Student's, as points are few."""
    flops, above = np.log(np.array(points).T)
    line = stats.linregress(flops, above)
    quantile = stats.t.ppf(0.975, len(points) - 2)
    return PowerLaw(float(np.exp(line.intercept)), float(-line.slope), float(quantile * line.stderr))


def plot(points: Mapping[str, Sequence[Point]], laws: Mapping[str, PowerLaw], path: Path) -> None:
    """Writes every run of each family, and its law."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (family, of_family), (colour, marker) in zip(points.items(), STYLES, strict=False):
        flops, above = np.array(of_family).T
        axes.plot(flops, above, marker, color=colour, label=f"{family}: {laws[family]}")
        axes.plot(flops, laws[family].at(flops), "--", color=colour, linewidth=1)
    axes.set(xscale="log", yscale="log", xlabel="forward FLOPs per example", ylabel="NE above the Bayes NE")
    axes.set_ylim(bottom=min(point.above for of_family in points.values() for point in of_family) / 1.5)
    axes.yaxis.set_major_formatter("{x:.3f}")
    axes.yaxis.set_minor_formatter("{x:.3f}")
    axes.grid(alpha=0.3, which="both")
    axes.legend(loc="lower left", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
