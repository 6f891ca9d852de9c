"""All measures of one lesson, in two passes over its rows: the first finds levels and cuts, the second compares."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from exfm.diagnosis.lessons import LessonRows
from exfm.diagnosis.measures import Agreement, Movement, Predictions, add_losses, recalibrated
from exfm.diagnosis.quantiles import QuantileHistogram
from exfm.diagnosis.slices import Activity, Slices, difference, make_slices
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.metrics import logits

Json = dict[str, Any]
Read = Callable[[bool], Iterable[LessonRows]]
"""Reads a lesson's rows from the beginning: only those of the scored windows, or all."""

_AGE_SHARES: Final = (0.1, 0.5, 0.9)


@dataclass
class FirstPass:
    """Counts all rows of a lesson, and sums up the levels of its scored ones.

    Attributes:
        taught_control: the control on the examples that have supervision.
        supervised, since_first: of all the student's examples, those with supervision, and those in the windows from
            the first with any on.
    """

    student: Predictions = field(default_factory=Predictions)
    control: Predictions = field(default_factory=Predictions)
    teacher: Predictions = field(default_factory=Predictions)
    taught_control: Predictions = field(default_factory=Predictions)
    activity: Activity = field(default_factory=Activity)
    activities: QuantileHistogram = field(default_factory=QuantileHistogram)
    ages: QuantileHistogram = field(default_factory=QuantileHistogram)
    confidences: QuantileHistogram = field(default_factory=QuantileHistogram)
    windows: list[int] = field(default_factory=list)
    examples: int = 0
    positives: int = 0
    supervised: int = 0
    since_first: int = 0
    with_times: bool = False

    def add_all(self, rows: LessonRows) -> None:
        """Adds rows of any window, scored or not."""
        hits = int(np.isfinite(rows.served).sum())
        self.activity.add(rows.group)
        self.examples += rows.label.size
        self.positives += int(rows.label.sum())
        self.supervised += hits
        if self.supervised:
            self.since_first += rows.label.size

    def add_scored(self, rows: LessonRows) -> None:
        """Adds rows of a scored window."""
        self.windows.append(rows.window.index)
        self.student.add(rows.student, rows.label)
        self.control.add(rows.control, rows.label)
        taught = rows.take(np.isfinite(rows.served))
        self.teacher.add(taught.served, taught.label)
        self.taught_control.add(taught.control, taught.label)
        self.confidences.add(np.abs(logits(taught.served)))
        self.ages.add(taught.age_s[np.isfinite(taught.age_s)])
        self.with_times = self.with_times or bool((rows.event_time_us >= 0).any())


@dataclass
class SecondPass:
    """Compares the models on a lesson's scored rows."""

    first: FirstPass
    slices: list[Slices]
    gain: PairedLosses = field(default_factory=PairedLosses)
    raw: PairedLosses = field(default_factory=PairedLosses)
    ordered: PairedLosses = field(default_factory=PairedLosses)
    fresh: PairedLosses = field(default_factory=PairedLosses)
    staleness: PairedLosses = field(default_factory=PairedLosses)
    agreement: Agreement = field(default_factory=Agreement)
    movement: Movement = field(default_factory=Movement)

    def __post_init__(self) -> None:
        self._teacher_fit, self._control_fit = self.first.teacher.fit, self.first.taught_control.fit

    def add(self, rows: LessonRows) -> None:
        """Adds rows of a scored window."""
        teacher_E, control_E = (
            recalibrated(rows.served, self._teacher_fit),
            recalibrated(rows.control, self._control_fit),
        )
        add_losses(self.gain, rows, rows.student, rows.control)
        hit_E = np.isfinite(rows.served)
        taught = rows.take(hit_E)
        add_losses(self.raw, taught, taught.served, taught.control)
        add_losses(self.ordered, taught, teacher_E[hit_E], control_E[hit_E])
        self.agreement.add(taught.label, taught.control, taught.served)
        self.movement.add(taught.student, taught.control, taught.served)
        both = rows.take(hit_E & np.isfinite(rows.fresh))
        add_losses(self.fresh, both, both.fresh, both.control)
        add_losses(self.staleness, both, both.fresh, both.served)
        for dimension in self.slices:
            dimension.add(rows, teacher_E, control_E)


def measure(read: Read, replicates: int, seed: int) -> Json:
    """Measures a lesson.

    Args:
        read: see ``Read``.
        replicates, seed: of the intervals.

    Returns:
        The parts of a diagnosis that come from predictions and supervision.
    """
    first = FirstPass()
    for rows in read(False):
        first.add_all(rows)
    for rows in read(True):
        first.add_scored(rows)
        first.activities.add(first.activity.of(rows.group))
    slices = make_slices(
        first.activity, first.activities, first.ages, first.confidences, first.windows, first.with_times
    )
    second = SecondPass(first, slices)
    for rows in read(True):
        second.add(rows)
    return {
        "gain": difference(second.gain, replicates, seed),
        "headroom": _headroom(second, replicates, seed),
        "reach": _reach(first, second, replicates, seed),
        "agreement": {
            "sign_share": second.agreement.sign_share,
            "cosine": second.agreement.cosine,
            "confirmed": second.agreement.confirmed,
        },
        "moved": second.movement.slope,
        "predictions": {
            name: described(predictions)
            for name, predictions in (
                ("student", first.student), ("control", first.control), ("teacher", first.teacher)
            )
        },
        "explained_share": _explained(first),
        "examples": first.examples,
        "positives": first.positives,
        "slices": {
            dimension.dimension: {"unit": dimension.unit, "slices": dimension.result(seed)} for dimension in slices
        },
    }  # fmt: skip


def _headroom(second: SecondPass, replicates: int, seed: int) -> Json:
    raw, ordered = difference(second.raw, replicates, seed), difference(second.ordered, replicates, seed)
    has_both = raw["percent"] is not None and ordered["percent"] is not None
    return {
        "raw": raw,
        "recalibrated": ordered,
        "calibration_cost_percent": ordered["percent"] - raw["percent"] if has_both else None,
    }


def _explained(first: FirstPass) -> float | None:
    """Computes the share of the entropy the teacher explains that the control explains too, both recalibrated."""
    control, teacher = first.taught_control.histogram.recalibration(), first.teacher.histogram.recalibration()
    if control is None or teacher is None or teacher.ne >= 1:
        return None
    return (1 - control.ne) / (1 - teacher.ne)


def _reach(first: FirstPass, second: SecondPass, replicates: int, seed: int) -> Json:
    ages = first.ages.quantiles(_AGE_SHARES)
    fresh = difference(second.fresh, replicates, seed) if second.fresh.examples else None
    cost = difference(second.staleness, replicates, seed) if second.fresh.examples else None
    return {
        "supervised_share": first.supervised / first.examples if first.examples else None,
        "supervised_share_since_first": first.supervised / first.since_first if first.since_first else None,
        "age_s": None if ages is None else dict(zip(("p10", "p50", "p90"), ages, strict=True)),
        "fresh_headroom": fresh,
        "staleness_cost": cost,
    }


def described(predictions: Predictions) -> Json:
    """Describes a model's level: NE, NE after recalibration, calibration, and the recalibration."""
    fit = predictions.histogram.recalibration()
    return {
        "examples": predictions.moments.examples,
        "ne": predictions.moments.ne,
        "ne_recalibrated": None if fit is None else fit.ne,
        "calibration": predictions.moments.calibration,
        "base_rate": predictions.moments.base_rate,
        "recalibration": None if fit is None else {"scale": fit.scale, "shift": fit.shift},
    }


def learning(windows: Sequence[Mapping[str, Any]], first_window: int) -> Json:
    """Describes how a model's NE moves over the scored windows of results.json.

    Returns:
        ``ne_worst``, of the worst window, scored or not; ``ne_first`` and ``ne_last``, of the first and the last third
        of the scored windows, weighted by examples, and ``fall_percent`` of the first. None where they have no meaning.
    """
    with_ne = [window for window in windows if window["ne"] is not None]
    scored = [(window["ne"], window["examples"]) for window in with_ne if window["window"] >= first_window]
    worst = max((window["ne"] for window in with_ne), default=None)
    third = len(scored) // 3
    if not third:
        return {"ne_worst": worst, "ne_first": None, "ne_last": None, "fall_percent": None}
    start, end = (_mean(some) for some in (scored[:third], scored[-third:]))
    return {"ne_worst": worst, "ne_first": start, "ne_last": end, "fall_percent": 100 * (start - end) / start}


def _mean(scored: Sequence[tuple[float, int]]) -> float:
    """Averages the NE of windows, weighted by their examples."""
    return float(np.average([ne for ne, _ in scored], weights=[examples for _, examples in scored]))
