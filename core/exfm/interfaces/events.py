"""Defines the events of a run, which trackers receive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from exfm.interfaces.data_source import Window

Outcome = Literal["complete", "ended", "failed", "stopped"]
"""complete: results.json is written. ended: the job has done all there is now. failed: an error. stopped: a signal."""


@dataclass(frozen=True)
class TrackedModel:
    """Describes a model of a run.

    Attributes:
        name: a control that exfm adds is called ``NAME.control``.
        identity: distinguishes the model from all others, also from the model of a run that started over in the same
            folder. It is equal after each start of a job.
        control: the name of the model's control, where it has any.
        params: its keys of the experiment file with all defaults, ``key.path: value``, and the keys of the run.
    """

    name: str
    identity: str
    control: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrackedRun:
    """Describes a run.

    Attributes:
        name: of the experiment.
        url: the run's folder, without credentials.
        config_yaml: the resolved experiment.
    """

    name: str
    url: str
    config_yaml: str


@dataclass(frozen=True)
class WindowCommitted:
    """Says that a model has committed a window; it will never change again.

    An undefined figure is left out, because trackers have no notion of a missing value.

    Attributes:
        committed_at: time of the commit, ISO 8601, UTC.
        examples: rows of the model in the window; 0 where all have been left out.
        examples_per_second: speed of the model's training; None without examples.
        tasks: by task, its figures: ``ne``, ``log_loss``, ``calibration`` and so on; with a control that has the same
            rows ``ne_gain_percent``.
        teachers: by teacher, the ``hit_rate`` of its supervision, and its mean age ``age_s``.
        lag_s: time from the end of the window to the newest row of the stream when the window was committed; None of a
            window that is delivered later.
        memory_bytes: main memory of the process when the window was committed; None of a later delivery.
    """

    model: TrackedModel
    window: Window
    committed_at: str
    examples: int
    examples_per_second: float | None = None
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    teachers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    lag_s: float | None = None
    memory_bytes: int | None = None

    def figures(self) -> dict[str, float]:
        """Returns all figures by path: ``TASK/ne``, ``supervision/TEACHER/age_s``, ``examples`` and so on."""
        values: dict[str, float] = {}
        for task, figures in self.tasks.items():
            for key, value in figures.items():
                values[f"{task}/{key}"] = value
        for teacher, figures in self.teachers.items():
            for key, value in figures.items():
                values[f"supervision/{teacher}/{key}"] = value
        values["examples"] = self.examples
        live = {
            "train_examples_per_second": self.examples_per_second,
            "lag_s": self.lag_s,
            "memory_bytes": self.memory_bytes,
        }
        for key, number in live.items():
            if number is not None:
                values[key] = number
        return values


@dataclass(frozen=True)
class SnapshotPublished:
    """Says that the snapshot after a window is published, which teaches and serves from now on."""

    model: TrackedModel
    window: Window


@dataclass(frozen=True)
class SnapshotHeld:
    """Says that a gate holds the snapshot after a window back.

    Attributes:
        reasons: by task.
    """

    model: TrackedModel
    window: Window
    reasons: Mapping[str, str]


@dataclass(frozen=True)
class RunEnded:
    """Says that a job has ended.

    Attributes:
        models: the models of the job.
        error: the error, of a job that failed.
        figures: by model, the figures of results.json by path, where the run is complete.
    """

    models: tuple[TrackedModel, ...]
    outcome: Outcome
    error: str = ""
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


Event = WindowCommitted | SnapshotPublished | SnapshotHeld | RunEnded
