"""A lesson's examples in slices: by the user's activity, time, age of the supervision, and the teacher's confidence.

Legend: E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from exfm.diagnosis.lessons import LessonRows
from exfm.diagnosis.measures import add_losses
from exfm.diagnosis.quantiles import QuantileHistogram
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.metrics import Ints, logits
from exfm.splitmix import splitmix64

_ACTIVITY_CELLS: Final = 1 << 18
"""Counters of users, by hash: two of a million users share a counter of 2 MiB in all, and look a little more active."""

_HOUR_US: Final = 3_600_000_000
_HOURS: Final = (6, 12, 18)
SLICE_REPLICATES: Final = 400
"""Bootstrap replicates of a slice's interval: there are dozens, and their ends need two digits."""

Values = Callable[[LessonRows], Any]


class Activity:
    """Counts a student's examples by user; group ids share counters by hash, so that the size is constant."""

    def __init__(self) -> None:
        self._counts = np.zeros(_ACTIVITY_CELLS, np.int64)

    def add(self, group_E: Ints) -> None:
        """Counts E examples."""
        self._counts += np.bincount(self._cells(group_E), minlength=_ACTIVITY_CELLS)

    def of(self, group_E: Ints) -> Ints:
        """Looks up how many examples each user has."""
        return self._counts[self._cells(group_E)]

    def _cells(self, group_E: Ints) -> Ints:
        return (splitmix64(group_E) % np.uint64(_ACTIVITY_CELLS)).astype(np.int64)


@dataclass
class Slices:
    """Measures the student's gain and the teacher's headroom in the slices of one dimension.

    Attributes:
        values: a number of each example (E,), not finite where there is none.
        cuts: numbers at which a slice ends and the next begins.
    """

    dimension: str
    unit: str
    values: Values
    cuts: Sequence[float]
    gain: list[PairedLosses] = field(init=False)
    headroom: list[PairedLosses] = field(init=False)

    def __post_init__(self) -> None:
        self.gain = [PairedLosses() for _ in range(len(self.cuts) + 1)]
        self.headroom = [PairedLosses() for _ in range(len(self.cuts) + 1)]

    def add(self, rows: LessonRows, teacher_E: Any, control_E: Any) -> None:
        """Adds the rows of a window.

        Args:
            teacher_E, control_E: what the headroom compares; NaN where the teacher served nothing.
        """
        value_E = self.values(rows)
        slice_E = np.where(np.isfinite(value_E), np.searchsorted(self.cuts, value_E, side="right"), -1)
        for number in range(len(self.cuts) + 1):
            index = np.flatnonzero(slice_E == number)
            here = rows.take(index)
            add_losses(self.gain[number], here, here.student, here.control)
            taught = index[np.isfinite(teacher_E[index])]
            add_losses(self.headroom[number], rows.take(taught), teacher_E[taught], control_E[taught])

    def result(self, seed: int) -> list[dict[str, Any]]:
        """Describes the slices as entries of a diagnosis."""
        ends = [None, *self.cuts, None]
        return [
            {
                "from": ends[number],
                "below": ends[number + 1],
                "examples": gain.examples,
                "gain": difference(gain, SLICE_REPLICATES, seed),
                "headroom": difference(headroom, SLICE_REPLICATES, seed),
            }
            for number, (gain, headroom) in enumerate(zip(self.gain, self.headroom, strict=True))
        ]


def difference(losses: PairedLosses, replicates: int, seed: int) -> dict[str, Any]:
    """Describes a difference of log losses for a diagnosis: NE gain in percent of the baseline's, with its interval."""
    bounds = losses.interval95(replicates, seed)
    return {
        "percent": losses.gain,
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
    """Makes the dimensions that this lesson's rows can be sliced by, each of two slices at least.

    Args:
        windows: indices of the scored windows, in order.
        with_hours: whether times of examples are known.
    """
    quarters = [windows[len(windows) * quarter // 4] for quarter in (1, 2, 3)] if len(windows) > 3 else []

    def hour(rows: LessonRows) -> Any:
        return np.where(rows.event_time_us < 0, np.nan, rows.event_time_us // _HOUR_US % 24)

    dimensions = [
        Slices("user activity", "examples of the user", lambda rows: activity.of(rows.group), activities.quarters()),
        Slices("hour of day", "hour, UTC", hour, _HOURS if with_hours else ()),
        Slices("stream", "window", lambda rows: np.full(rows.label.size, rows.window.index), quarters),
        Slices("age of supervision", "seconds", lambda rows: rows.age_s, ages.quarters()),
        Slices("teacher's confidence", "|logit|", lambda rows: np.abs(logits(rows.served)), confidences.quarters()),
    ]
    return [dimension for dimension in dimensions if dimension.cuts]
