"""Computes the figures of a committed window: from the counters of its commit, or from its predictions."""

from __future__ import annotations

from collections.abc import Mapping

from exfm.evaluation.evaluate import TaskScores
from exfm.evaluation.gains import add_common
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.label_kinds import from_counters
from exfm.evaluation.predictions import TaskRows
from exfm.interfaces.data_source import Window
from exfm.storage.commits import Commit
from exfm.supervision.coverage import Coverage

Figures = dict[str, dict[str, float]]
"""Figures by task or teacher."""


def counted_figures(commit: Commit, control: Commit | None) -> Figures:
    """Computes figures of each task from the sums of a commit, without reading a row.

    Args:
        control: the commit of the model's control, where it has any; the gain is known where both have the same rows.
    """
    figures: Figures = {}
    for task, counted in commit.counters.get("prequential", {}).items():
        sums = from_counters(counted)
        values = {"ne": sums.ne, "log_loss": sums.log_loss, "calibration": sums.calibration}
        other = {} if control is None else control.counters.get("prequential", {}).get(task, {})
        if other:
            values["ne_gain_percent"] = sums.gain_percent(from_counters(other))
        figures[task] = _defined(values)
    return figures


def scored_figures(
    window: Window, rows_by_task: Mapping[str, TaskRows], control: Mapping[str, TaskRows] | None
) -> Figures:
    """Scores a model's predictions of a window, and compares them with its control's where both predicted."""
    figures: Figures = {}
    for task, rows in rows_by_task.items():
        scores = TaskScores()
        scores.add(window, rows, scored=False)
        (entry,) = scores.windows
        values: dict[str, float | None] = {key: entry[key] for key in ("ne", "auc", "bayes_ne") if key in entry}
        if control is not None and task in control:
            losses = PairedLosses()
            add_common(losses, rows, control[task])
            values["ne_gain_percent"] = losses.gain
        figures[task] = _defined(values)
    return figures


def teacher_figures(commit: Commit) -> Figures:
    """Computes the coverage by each teacher from the counters of a commit."""
    figures: Figures = {}
    for teacher, counters in commit.counters.get("teachers", {}).items():
        coverage = Coverage.from_counters(counters)
        figures[teacher] = _defined({"hit_rate": coverage.hit_rate, "age_s": coverage.age_s})
    return figures


def _defined(values: Mapping[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in values.items() if value is not None}
