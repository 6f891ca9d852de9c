"""The comparisons a report opens with, and the common scale on which their intervals are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.ticker import MaxNLocator

from exfm.reporting.formatting import signed, verdict

Json = Mapping[str, Any]

_MOST_TICKS = 5


def comparisons(gains: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """One comparison for each model and task; results.json has one entry for each teacher, next to each other."""
    for (model, task), entries in groupby(gains, key=lambda gain: (gain["model"], gain["task"])):
        first, *others = entries
        taught = [gain for gain in (first, *others) if gain["teacher"] is not None]
        yield {**first, "teachers": taught, "verdict": verdict(first), "model": model, "task": task}


@dataclass(frozen=True)
class Scale:
    """A horizontal axis of gains, in percent, that all comparisons share; zero is on it.

    Attributes:
        low, high: the gains at its ends.
        steps: the gains that it names.
    """

    low: float
    high: float
    steps: tuple[float, ...]

    @classmethod
    def of(cls, gains: Sequence[Json]) -> Scale:
        """The scale that has room for every gain and interval."""
        values = [0.0]
        for gain in gains:
            values += [value for value in (gain["ne_gain_percent"], *(gain["interval95"] or ())) if value is not None]
        low, high = min(values), max(values)
        margin = 0.04 * (high - low) or 1.0
        low, high = low - margin, high + margin
        steps = MaxNLocator(_MOST_TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return cls(low, high, tuple(float(step) for step in steps if low <= step <= high))

    def place(self, gain: float) -> str:
        """Where a gain lies, in percent of the axis's length from its left end."""
        return f"{100 * (gain - self.low) / (self.high - self.low):.2f}%"

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """Place and name of each step."""
        digits = next(
            digits for digits in range(9) if all(abs(step - round(step, digits)) < 1e-9 for step in self.steps)
        )
        return [(self.place(step), f"{signed(step, digits) if step else 0}%") for step in self.steps]
