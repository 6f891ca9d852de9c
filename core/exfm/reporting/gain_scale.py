"""Lists the comparisons that a report opens with, and computes the axis on which their intervals are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from matplotlib.ticker import MaxNLocator

from exfm.mappings import records_with
from exfm.reporting.formatting import signed, verdict

Json = Mapping[str, Any]

_MOST_TICKS = 5


def comparisons(gains: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """Yields a comparison for each model and task, with its teachers."""
    # results.json has an entry for each teacher, next to each other; they differ in the teacher's figures only.
    for (model, task), entries in groupby(gains, key=lambda gain: (gain["model"], gain["task"])):
        first, *others = entries
        taught = records_with((first, *others), "teacher")
        yield {**first, "teachers": taught, "verdict": verdict(first), "model": model, "task": task}


@dataclass(frozen=True)
class GainScale:
    """Maps gains in percent to positions on a horizontal axis that all comparisons share; zero is on it.

    Attributes:
        low, high: the gains at its ends.
        steps: the gains with a tick.
    """

    low: float
    high: float
    steps: tuple[float, ...]

    @classmethod
    def from_gains(cls, gains: Sequence[Json]) -> GainScale:
        """Chooses the scale that has room for every gain and interval."""
        values = [0.0]
        for gain in gains:
            for value in (gain["ne_gain_percent"], *(gain["interval95"] or ())):
                if value is not None:
                    values.append(value)
        low, high = min(values), max(values)
        # Where all gains are zero, any width will do.
        margin = 0.04 * (high - low) or 1.0
        low, high = low - margin, high + margin
        steps = MaxNLocator(_MOST_TICKS, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return cls(low, high, tuple(float(step) for step in steps if low <= step <= high))

    def position(self, gain: float) -> str:
        """Computes the position of a gain, in percent of the axis's length from its left end."""
        return f"{100 * (gain - self.low) / (self.high - self.low):.2f}%"

    @property
    def ticks(self) -> list[tuple[str, str]]:
        """Position and label of each step, with as many digits as the steps need."""
        digits = 0
        # Eight, because no scale of gains is finer; 1e-9 allows for the rounding of the steps.
        while digits < 8 and any(abs(step - round(step, digits)) >= 1e-9 for step in self.steps):
            digits += 1
        ticks = []
        for step in self.steps:
            label = signed(step, digits) if step else "0"
            ticks.append((self.position(step), f"{label}%"))
        return ticks
