"""Averages the figures of runs that differ in their seed alone, with standard deviations and intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from exfm.mappings import defined, records_with, values_at
from exfm.reporting.formatting import fixed

Json = Mapping[str, Any]


def spread(name: str, values: Sequence[float | None]) -> dict[str, float | None]:
    """Averages the values that are not None, and computes their sample standard deviation as ``NAME_std``."""
    numbers = defined(values)
    mean, deviation = None, None
    if numbers:
        mean = statistics.fmean(numbers)
    if len(numbers) > 1:
        deviation = statistics.stdev(numbers)
    return {name: mean, f"{name}_std": deviation}


def spread_of_key(key: str, entries: Sequence[Json]) -> dict[str, float | None]:
    """Averages a figure of entries, as ``spread`` does."""
    return spread(key, values_at(entries, key))


def with_spread(row: Json, name: str, digits: int) -> str:
    """Formats a mean, and its standard deviation where the row has any."""
    deviation = row[f"{name}_std"]
    mean = fixed(row[name], digits)
    if deviation is None:
        return mean
    return f"{mean}±{fixed(deviation, digits)}"


def gain_interval(entries: Sequence[Json]) -> list[float] | None:
    """Computes the 95% interval of ``ne_gain_percent`` over runs by Student's t; of a single run, its bootstrap's."""
    measured = records_with(entries, "ne_gain_percent")
    if len(measured) > 1:
        return t_interval95(values_at(measured, "ne_gain_percent"))
    if not measured:
        return None
    bootstrap: list[float] | None = measured[0]["interval95"]
    return bootstrap


def t_interval95(values: Sequence[float]) -> list[float]:
    """Computes the 95% interval of the mean of at least two independent values, by Student's t."""
    mean = statistics.fmean(values)
    half = t_quantile95(len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [mean - half, mean + half]


def t_quantile95(freedom: int) -> float:
    """Computes the t with 95% of Student's t distribution between -t and t: 12.706 for a single degree of freedom."""
    # By bisection, because scipy is no dependency: 12.706 is the largest quantile, and the normal's 1.960 the smallest.
    low, high = 1.9, 13.0
    while high - low > 1e-12:
        middle = (low + high) / 2
        if _t_within(middle, freedom) < 0.95:
            low = middle
        else:
            high = middle
    return high


def _t_within(t: float, freedom: int) -> float:
    """Computes P(|T| <= t) in closed form for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    is_odd = freedom % 2
    angle = math.atan2(t, math.sqrt(freedom))
    term, total = math.cos(angle) if is_odd else 1.0, 0.0
    # Each term of the series follows from the term before it.
    for factor in range(1 + is_odd, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * factor / (factor + 1)
    total *= math.sin(angle)
    if is_odd:
        return (angle + total) * 2 / math.pi
    return total
