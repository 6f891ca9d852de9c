"""Slices a taught task's examples by user activity, time, age of the supervision, and the teacher's confidence.

Legend: E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from exfm.diagnosis.measures import add_losses
from exfm.diagnosis.quantiles import QuantileHistogram
from exfm.diagnosis.taught_rows import TaughtRows
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.metrics import Ints, logits
from exfm.splitmix import splitmix64

_ACTIVITY_CELLS: Final = 1 << 18
"""Counters of users by hash, 2 MiB in all. Among a million users four share a counter, and look more active."""

_HOUR_US: Final = 3_600_000_000
_HOURS: Final = (6, 12, 18)
SLICE_REPLICATES: Final = 400
"""Bootstrap replicates of a slice's interval: fewer than the run's, because there are dozens of slices."""

Values = Callable[[TaughtRows], Any]


class Activity:
    """Counts a student's examples by user, in counters that group ids share by hash, so that the size is constant."""

    def __init__(self) -> None:
        self._counts = np.zeros(_ACTIVITY_CELLS, np.int64)

    def add(self, group_E: Ints) -> None:
        """Counts E examples."""
        self._counts += np.bincount(self._cells(group_E), minlength=_ACTIVITY_CELLS)

    def examples_of(self, group_E: Ints) -> Ints:
        """Looks up the number of examples of each user."""
        return self._counts[self._cells(group_E)]

    def _cells(self, group_E: Ints) -> Ints:
        # Hashed, because ids that share their lowest bits would share a counter.
        return (splitmix64(group_E) % np.uint64(_ACTIVITY_CELLS)).astype(np.int64)


@dataclass
class Slices:
    """Measures the student's gain and the teacher's headroom in the slices of a dimension.

    Attributes:
        values: computes a number for each example (E,), not finite where there is none.
        cuts: ascending numbers at which a slice ends and the next begins.
    """

    dimension: str
    unit: str
    values: Values
    cuts: Sequence[float]
    gain: list[PairedLosses] = field(init=False)
    headroom: list[PairedLosses] = field(init=False)

    def __post_init__(self) -> None:
        self.gain, self.headroom = [], []
        for _ in range(len(self.cuts) + 1):
            self.gain.append(PairedLosses())
            self.headroom.append(PairedLosses())

    def add(self, rows: TaughtRows, teacher_E: Any, control_E: Any) -> None:
        """Adds the rows of a window.

        Args:
            teacher_E, control_E: probabilities that the headroom compares; NaN where the teacher served nothing.
        """
        value_E = self.values(rows)
        # An example without a value is in no slice.
        slice_E = np.where(np.isfinite(value_E), np.searchsorted(self.cuts, value_E, side="right"), -1)
        for number in range(len(self.cuts) + 1):
            index = np.flatnonzero(slice_E == number)
            in_slice = rows.take(index)
            add_losses(self.gain[number], in_slice, in_slice.student, in_slice.control)
            supervised = index[np.isfinite(teacher_E[index])]
            add_losses(self.headroom[number], rows.take(supervised), teacher_E[supervised], control_E[supervised])

    def result(self, seed: int) -> list[dict[str, Any]]:
        """Describes the slices as entries of a diagnosis."""
        starts, ends = [None, *self.cuts], [*self.cuts, None]
        entries = []
        for start, end, gain, headroom in zip(starts, ends, self.gain, self.headroom, strict=True):
            entry = {
                "from": start,
                "below": end,
                "examples": gain.examples,
                "gain": difference(gain, SLICE_REPLICATES, seed),
                "headroom": difference(headroom, SLICE_REPLICATES, seed),
            }
            entries.append(entry)
        return entries


def difference(losses: PairedLosses, replicates: int, seed: int) -> dict[str, Any]:
    """Describes a difference of log losses for a diagnosis: NE gain in percent of the baseline's, with its interval."""
    bounds = losses.interval95(replicates, seed)
    return {
        "percent": losses.gain,
        # A list, because JSON has no tuples, and a diagnosis that is read again must equal itself.
        "interval95": None if bounds is None else list(bounds),
        "examples": losses.examples,
    }


def make_slices(
    activity: Activity,
    activities: QuantileHistogram,
    ages: QuantileHistogram,
    confidences: QuantileHistogram,
    windows: Sequence[int],
    with_hours: bool,
) -> list[Slices]:
    """Builds the dimensions that have at least two slices for the rows of a taught task.

    Args:
        windows: indices of the scored windows, in order.
        with_hours: whether the rows have times.
    """
    quarters: list[int] = []
    if len(windows) > 3:
        quarters = [windows[len(windows) * quarter // 4] for quarter in (1, 2, 3)]

    def hour(rows: TaughtRows) -> Any:
        # A missing time is -1; NaN keeps it out of every slice.
        return np.where(rows.event_time_us < 0, np.nan, rows.event_time_us // _HOUR_US % 24)

    def examples_of_user(rows: TaughtRows) -> Any:
        return activity.examples_of(rows.group)

    dimensions = [
        Slices("user activity", "examples of the user", examples_of_user, activities.quarters()),
        Slices("hour of day", "hour, UTC", hour, _HOURS if with_hours else ()),
        Slices("stream", "window", lambda rows: np.full(rows.label.size, rows.window.index), quarters),
        Slices("age of supervision", "seconds", lambda rows: rows.age_s, ages.quarters()),
        Slices("teacher's confidence", "|logit|", lambda rows: np.abs(logits(rows.served)), confidences.quarters()),
    ]
    # A dimension without cuts is a single slice, which repeats the overall figures.
    return [dimension for dimension in dimensions if dimension.cuts]
