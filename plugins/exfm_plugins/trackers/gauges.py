"""Names the present figures of a model as Prometheus and OpenTelemetry name theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from exfm.events import WindowCommitted

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
"""The gauges, and what they are."""

COUNTERS: Final[Mapping[str, str]] = {
    "exfm_examples": "Examples of committed windows since the job began.",
    "exfm_windows": "Committed windows since the job began.",
    "exfm_snapshots_held": "Snapshots that were held back since the job began.",
}
"""The counters, and what they are."""

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
