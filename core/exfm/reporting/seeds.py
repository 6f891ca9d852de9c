"""Figures of runs that differ in their seed alone: means, standard deviations and intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from exfm.reporting.formatting import fixed

Json = Mapping[str, Any]


def spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """Averages the values that are known, and gives their sample standard deviation as ``NAME_std``."""
    known = [value for value in values if value is not None]
    return {
        name: statistics.fmean(known) if known else None,
        f"{name}_std": statistics.stdev(known) if len(known) > 1 else None,
    }


def with_spread(row: Json, name: str, digits: int) -> str:
    """A mean in words, and its standard deviation where there is any."""
    deviation = row[f"{name}_std"]
    return fixed(row[name], digits) + ("" if deviation is None else f"±{fixed(deviation, digits)}")


def gain_interval(entries: Sequence[Json]) -> list[float] | None:
    """95% interval of ``ne_gain_percent`` over runs: Student's t over their gains, or the interval of a single run."""
    known = [entry["ne_gain_percent"] for entry in entries if entry["ne_gain_percent"] is not None]
    if len(known) > 1:
        return t_interval95(known)
    return next((entry["interval95"] for entry in entries if entry["ne_gain_percent"] is not None), None)


def t_interval95(values: Sequence[float]) -> list[float]:
    """95% interval of the mean of two independent values or more, by Student's t."""
    mean = statistics.fmean(values)
    half = t_quantile95(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [mean - half, mean + half]


def t_quantile95(freedom: int) -> float:
    """Between minus this and this lies 95% of Student's t distribution: 12.706 for one degree of freedom."""
    low, high = 1.9, 13.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_within(middle, freedom) < 0.95 else (low, middle)
    return high


def _t_within(t: float, freedom: int) -> float:
    """P(|T| <= t) in closed form for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    odd = freedom % 2
    angle = math.atan2(t, math.sqrt(freedom))
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for factor in range(1 + odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * factor / (factor + 1)
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
