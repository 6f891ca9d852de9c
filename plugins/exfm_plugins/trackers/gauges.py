"""Names the present figures of a model as Prometheus and OpenTelemetry name theirs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Final

import exfm
from exfm.events import SnapshotHeld, SnapshotPublished, WindowCommitted

GAUGES: Final[Mapping[str, str]] = {
    "exfm_window_end_seconds": "End of the newest committed window in the stream's time, seconds since 1970.",
    "exfm_committed_at_seconds": "When the newest window was committed, seconds since 1970.",
    "exfm_lag_seconds": "From the end of the newest committed window to the newest row of the stream.",
    "exfm_rows_per_second": "Speed of the model's training in its newest window.",
    "exfm_memory_bytes": "Main memory of the process that trains the model.",
    "exfm_ne": "Normalized entropy of the newest window.",
    "exfm_log_loss": "Mean log loss of the newest window.",
    "exfm_calibration": "Predicted positives over positives in the newest window.",
    "exfm_ne_gain_percent": "NE gain over the control in the newest window.",
    "exfm_supervision_hit_rate": "Share of the newest window's examples that a teacher has supervised.",
    "exfm_supervision_age_seconds": "Mean age of a teacher's supervision in the newest window.",
    "exfm_snapshot_held": "Whether the snapshot after the newest window is held back.",
}
"""Describes each gauge."""

COUNTERS: Final[Mapping[str, str]] = {
    "exfm_examples": "Examples of committed windows since the job began.",
    "exfm_windows": "Committed windows since the job began.",
    "exfm_snapshots_held": "Snapshots that were held back since the job began.",
}
"""Describes each counter."""

_TASK_GAUGES = ("ne", "log_loss", "calibration", "ne_gain_percent")


@dataclass(frozen=True)
class Measure:
    """A value of a gauge.

    Attributes:
        labels: ``model``, and ``task`` or ``teacher`` where the gauge has any.
    """

    gauge: str
    labels: Mapping[str, str]
    value: float


class GaugeTracker(exfm.Tracker):
    """Bases trackers that show the present figures as gauges, and count as counters.

    A subclass opens in ``_open`` what takes them, which is called before the first figures, and perhaps again.
    """

    newest_only: ClassVar[bool] = True

    def window_committed(self, event: WindowCommitted) -> None:
        """Sets the figures of a window instead of those of the window before."""
        self._open()
        for measure in window_measures(event):
            self._set(measure)
        self._count("exfm_windows", event.model.name, 1)
        self._count("exfm_examples", event.model.name, event.examples)

    def snapshot_published(self, event: SnapshotPublished) -> None:
        """Says that the snapshot is not held."""
        self._set(Measure("exfm_snapshot_held", {"model": event.model.name}, 0))

    def snapshot_held(self, event: SnapshotHeld) -> None:
        """Says that the snapshot is held."""
        self._set(Measure("exfm_snapshot_held", {"model": event.model.name}, 1))
        self._count("exfm_snapshots_held", event.model.name, 1)

    @abstractmethod
    def _open(self) -> None:
        """Begins to show or to export, unless it has begun."""

    @abstractmethod
    def _set(self, measure: Measure) -> None:
        """Sets a gauge."""

    @abstractmethod
    def _count(self, counter: str, model: str, amount: float) -> None:
        """Adds to a model's counter."""


def window_measures(event: WindowCommitted) -> Iterator[Measure]:
    """Yields the values of a window."""
    model = {"model": event.model.name}
    yield Measure("exfm_window_end_seconds", model, event.window.end_us / 1e6)
    yield Measure("exfm_committed_at_seconds", model, datetime.fromisoformat(event.committed_at).timestamp())
    live = {
        "exfm_lag_seconds": event.lag_s,
        "exfm_rows_per_second": event.examples_per_second,
        "exfm_memory_bytes": event.memory_bytes,
    }
    for gauge, value in live.items():
        if value is not None:
            yield Measure(gauge, model, value)
    for task, figures in event.tasks.items():
        for key in _TASK_GAUGES:
            if key in figures:
                yield Measure(f"exfm_{key}", {**model, "task": task}, figures[key])
    for teacher, figures in event.teachers.items():
        labels = {**model, "teacher": teacher}
        yield Measure("exfm_supervision_hit_rate", labels, figures.get("hit_rate", 0.0))
        if "age_s" in figures:
            yield Measure("exfm_supervision_age_seconds", labels, figures["age_s"])
