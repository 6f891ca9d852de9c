"""Measures a taught task in two passes over its rows: the first finds levels and cuts, the second compares.

Legend: E examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from exfm.diagnosis.measures import Agreement, Movement, Predictions, add_losses, recalibrated
from exfm.diagnosis.quantiles import QuantileHistogram
from exfm.diagnosis.slices import Activity, Slices, difference, make_slices
from exfm.diagnosis.taught_rows import TaughtRows
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.metrics import logits
from exfm.mappings import records_with, values_at

Json = dict[str, Any]
Read = Callable[[bool], Iterable[TaughtRows]]
"""Reads the rows of a taught task from the beginning: those of the scored windows if the argument is true, or all."""

_AGE_SHARES: Final = (0.1, 0.5, 0.9)
_AGE_KEYS: Final = ("p10", "p50", "p90")


@dataclass
class FirstPass:
    """Counts all rows of a taught task, and sums up the levels of its scored rows.

    Attributes:
        taught_control: the control on the examples that have supervision.
        supervised: the student's examples with supervision.
        since_first: the student's examples since the first window with any supervision.
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

    def add_all(self, rows: TaughtRows) -> None:
        """Adds rows of any window, scored or not."""
        hits = int(np.isfinite(rows.served).sum())
        self.activity.add(rows.group)
        self.examples += rows.label.size
        self.positives += int(rows.label.sum())
        self.supervised += hits
        # After the line above, so that the first supervised window counts too.
        if self.supervised:
            self.since_first += rows.label.size

    def add_scored(self, rows: TaughtRows) -> None:
        """Adds rows of a scored window."""
        self.windows.append(rows.window.index)
        self.student.add(rows.student, rows.label)
        self.control.add(rows.control, rows.label)
        # Teacher and control are recalibrated on the same examples, or their NEs would not compare.
        taught = rows.take(np.isfinite(rows.served))
        self.teacher.add(taught.served, taught.label)
        self.taught_control.add(taught.control, taught.label)
        self.confidences.add(np.abs(logits(taught.served)))
        self.ages.add(taught.age_s[np.isfinite(taught.age_s)])
        self.with_times = self.with_times or bool((rows.event_time_us >= 0).any())


@dataclass
class SecondPass:
    """Compares the models on the scored rows of a taught task.

    Attributes:
        gain: of the student over its control.
        raw, ordered: of the served teacher over the control, as they are and with both recalibrated.
        fresh: of the teacher's predictions before training on the example, over the control.
        staleness: of the teacher's predictions before training on the example, over the served predictions.
    """

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

    def add(self, rows: TaughtRows) -> None:
        """Adds rows of a scored window."""
        # The fits of the first pass, so that a gain is not of calibration alone.
        teacher_E = recalibrated(rows.served, self._teacher_fit)
        control_E = recalibrated(rows.control, self._control_fit)
        add_losses(self.gain, rows, rows.student, rows.control)
        hit_E = np.isfinite(rows.served)
        taught = rows.take(hit_E)
        add_losses(self.raw, taught, taught.served, taught.control)
        add_losses(self.ordered, taught, teacher_E[hit_E], control_E[hit_E])
        self.agreement.add(taught.label, taught.control, taught.served)
        self.movement.add(taught.student, taught.control, taught.served)
        # Freshness is compared where served and fresh predictions exist, so that both have the same examples.
        both = rows.take(hit_E & np.isfinite(rows.fresh))
        add_losses(self.fresh, both, both.fresh, both.control)
        add_losses(self.staleness, both, both.fresh, both.served)
        for dimension in self.slices:
            dimension.add(rows, teacher_E, control_E)


def measure(read: Read, replicates: int, seed: int) -> Json:
    """Measures a taught task.

    Args:
        read: see ``Read``.
        replicates, seed: of the intervals.

    Returns:
        The keys of a diagnosis that come from predictions and supervision.
    """
    first = FirstPass()
    for rows in read(False):
        first.add_all(rows)
    for rows in read(True):
        first.add_scored(rows)
        # All rows are counted by now, so that a user's activity is that of the whole stream.
        first.activities.add(first.activity.examples_of(rows.group))
    slices = make_slices(
        first.activity, first.activities, first.ages, first.confidences, first.windows, first.with_times
    )
    second = SecondPass(first, slices)
    for rows in read(True):
        second.add(rows)
    by_dimension: dict[str, Json] = {}
    for dimension in slices:
        by_dimension[dimension.dimension] = {"unit": dimension.unit, "slices": dimension.result(seed)}
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
            "student": describe_level(first.student),
            "control": describe_level(first.control),
            "teacher": describe_level(first.teacher),
        },
        "explained_share": _explained(first),
        "examples": first.examples,
        "positives": first.positives,
        "slices": by_dimension,
    }


def _headroom(second: SecondPass, replicates: int, seed: int) -> Json:
    """Describes the teacher's gain over the control, and the share of it that its calibration costs."""
    raw, ordered = difference(second.raw, replicates, seed), difference(second.ordered, replicates, seed)
    cost = None
    if raw["percent"] is not None and ordered["percent"] is not None:
        cost = ordered["percent"] - raw["percent"]
    return {"raw": raw, "recalibrated": ordered, "calibration_cost_percent": cost}


def _explained(first: FirstPass) -> float | None:
    """Computes the share of the entropy the teacher explains that the control explains too, both recalibrated."""
    control, teacher = first.taught_control.histogram.recalibration(), first.teacher.histogram.recalibration()
    if control is None or teacher is None or teacher.ne >= 1:
        return None
    return (1 - control.ne) / (1 - teacher.ne)


def _reach(first: FirstPass, second: SecondPass, replicates: int, seed: int) -> Json:
    """Describes the supervised share of the student's traffic, and the age of the supervision with its cost."""
    figures: Json = {
        "supervised_share": first.supervised / first.examples if first.examples else None,
        "supervised_share_since_first": first.supervised / first.since_first if first.since_first else None,
        "age_s": None,
        "fresh_headroom": None,
        "staleness_cost": None,
    }
    ages = first.ages.quantiles(_AGE_SHARES)
    if ages is not None:
        figures["age_s"] = dict(zip(_AGE_KEYS, ages, strict=True))
    if second.fresh.examples:
        figures["fresh_headroom"] = difference(second.fresh, replicates, seed)
        figures["staleness_cost"] = difference(second.staleness, replicates, seed)
    return figures


def describe_level(predictions: Predictions) -> Json:
    """Describes a model's level: NE, NE after recalibration, calibration, and the recalibration."""
    figures: Json = {
        "examples": predictions.moments.examples,
        "ne": predictions.moments.ne,
        "ne_recalibrated": None,
        "calibration": predictions.moments.calibration,
        "base_rate": predictions.moments.base_rate,
        "recalibration": None,
    }
    fit = predictions.histogram.recalibration()
    if fit is not None:
        figures["ne_recalibrated"] = fit.ne
        figures["recalibration"] = {"scale": fit.scale, "shift": fit.shift}
    return figures


def learning(windows: Sequence[Mapping[str, Any]], first_window: int) -> Json:
    """Describes how a model's NE changes over the scored windows of results.json.

    Returns:
        ``ne_worst``, of the worst window, scored or not; ``ne_first`` and ``ne_last``, of the first and the last third
        of the scored windows, weighted by examples; ``fall_percent``, from ``ne_first`` to ``ne_last``. None where a
        figure has no meaning.
    """
    with_ne = records_with(windows, "ne")
    scored = [(window["ne"], window["examples"]) for window in with_ne if window["window"] >= first_window]
    worst = max(values_at(with_ne, "ne"), default=None)
    # Thirds, so that the average of a few noisy windows is compared, and the middle does not blur the difference.
    third = len(scored) // 3
    if not third:
        return {"ne_worst": worst, "ne_first": None, "ne_last": None, "fall_percent": None}
    start, end = _mean_ne(scored[:third]), _mean_ne(scored[-third:])
    return {"ne_worst": worst, "ne_first": start, "ne_last": end, "fall_percent": 100 * (start - end) / start}


def _mean_ne(scored: Sequence[tuple[float, int]]) -> float:
    """Averages the NE of windows, weighted by their examples."""
    return float(np.average([ne for ne, _ in scored], weights=[examples for _, examples in scored]))
