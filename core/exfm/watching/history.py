"""Reads the figures of a model's committed windows over time, from manifests alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from exfm.interfaces.data_source import utc
from exfm.storage.commits import Commit, CommitLog
from exfm.supervision.coverage import Coverage
from exfm.watching.model_status import scores

MOST_WINDOWS: Final = 240
"""Windows of a model that are read, the newest: ten days of hours, and fewer than a picture has pixels."""


class History:
    """Keeps the windows that were read before, because a committed window does not change.

    Args:
        trained: the commits of a model's training, and its name there.
        control: those of its control; None without any.
    """

    def __init__(self, trained: tuple[CommitLog, str], control: tuple[CommitLog, str] | None = None) -> None:
        self._trained, self._control = trained, control
        self._points: dict[tuple[int, str], dict[str, Any]] = {}

    def points(self) -> list[dict[str, Any]]:
        """Lists the newest windows, oldest first: ``index``, ``start``, ``examples``, ``tasks`` and ``supervision``.

        A task has ``ne``, ``calibration`` and ``gain_percent`` over the control, of windows in which both have
        predicted the same labels.

        Raises:
            RunError: a manifest is damaged or missing.
        """
        log, model = self._trained
        points: list[dict[str, Any]] = []
        kept: dict[tuple[int, str], dict[str, Any]] = {}
        for index in islice(log.newest_first("train", model), MOST_WINDOWS):
            commit = log.load("train", model, index)
            other = self._control_commit(index)
            # The control commits the window after the model, so that a point without it is read again.
            key = (index, commit.written_at if other is None else f"{commit.written_at} {other.written_at}")
            kept[key] = self._points.get(key) or _point(commit, other)
            points.append(kept[key])
        # Only points that are still shown stay, so that a page that is open for weeks does not grow.
        self._points = kept
        return points[::-1]

    def _control_commit(self, index: int) -> Commit | None:
        if self._control is None:
            return None
        log, control = self._control
        return log.load("train", control, index) if log.has("train", control, index) else None


def _point(commit: Commit, control: Commit | None) -> dict[str, Any]:
    compared = {} if control is None else scores(control)
    tasks: dict[str, Any] = {}
    for task, moments in scores(commit).items():
        gain = None
        # Labels that are all alike have no NE.
        if task in compared and moments.baseline is not None:
            gain = moments.gain_percent(compared[task])
        tasks[task] = {"ne": moments.ne, "calibration": moments.calibration, "gain_percent": gain}
    supervision: dict[str, Mapping[str, float | None]] = {}
    for teacher, counted in commit.counters["teachers"].items():
        coverage = Coverage.from_counters(counted)
        supervision[teacher] = {"hit_rate": coverage.hit_rate, "age_s": coverage.age_s}
    return {
        "index": commit.window.index,
        "start": utc(commit.window.start_us),
        "examples": commit.counters["examples"],
        "tasks": tasks,
        "supervision": supervision,
    }
