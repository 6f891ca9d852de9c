"""Computes transfer ratios of a sweep: a student's gain from a better teacher, divided by the teacher's gain."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, Final

from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import fixed, interval, signed
from exfm.reporting.seeds import t_interval95
from exfm.reporting.sweep_plot import point_label

Json = Mapping[str, Any]
PointKey = frozenset[tuple[str, str]]

SEED: Final = "seed"


def point_key(values: Mapping[str, str]) -> PointKey:
    """Converts a point's values to a key that does not depend on their order."""
    return frozenset(values.items())


def transfer_ratios(
    axes: Mapping[str, Sequence[str]], results: Mapping[PointKey, Json | None]
) -> Iterator[dict[str, Any]]:
    """Yields a row for each student, task and point whose teacher is not that of the first point of an axis.

    Both points have equal values on all other axes, and are compared seed by seed. A gain is 100 (NE_first - NE) /
    NE_first. The ratio is the student's mean gain over the teacher's mean gain. It is None unless the 95% interval of
    the teacher's gain over seeds excludes zero: a ratio to noise would mislead. Points at which a model has predicted
    other examples are not compared.

    Args:
        axes: the values of each key.
        results: each point's results.json, None where it failed.
    """
    # A sweep without an axis of seeds has a single run at each point.
    seeds = [{SEED: seed} for seed in axes.get(SEED, ())] or [{}]
    for axis in axes:
        if axis == SEED:
            continue
        other_axes = [key for key in axes if key not in (axis, SEED)]
        for chosen in product(*(axes[key] for key in other_axes)):
            equal = dict(zip(other_axes, chosen, strict=True))
            first_value, *later_values = axes[axis]
            first = {**equal, axis: first_value}
            for value in later_values:
                values = {**equal, axis: value}
                pairs = []
                for seed in seeds:
                    before = results.get(point_key({**first, **seed}))
                    after = results.get(point_key({**values, **seed}))
                    if before is not None and after is not None:
                        pairs.append((before, after))
                yield from _ratio_rows(first, values, pairs)


def _ratio_rows(
    first: dict[str, str], values: dict[str, str], pairs: Sequence[tuple[Json, Json]]
) -> Iterator[dict[str, Any]]:
    """Yields a row for each teacher, student and task of two points.

    Args:
        pairs: results at the first point and at the other point, for each seed that has both.
    """
    if not pairs:
        return
    for teacher, student, task in _taught_tasks(pairs[0][0]):
        teacher_gains, student_gains = [], []
        for before, after in pairs:
            teacher_gain, student_gain = _gain(before, after, teacher, task), _gain(before, after, student, task)
            # Both means are over the same seeds, so a seed without either gain counts in neither.
            if teacher_gain is not None and student_gain is not None:
                teacher_gains.append(teacher_gain)
                student_gains.append(student_gain)
        # No gain at all: both points have the same teacher, or other examples.
        if not any(teacher_gains):
            continue
        teacher_interval, student_interval, ratio = None, None, None
        # A single seed has no interval, and without an interval there is no ratio.
        if len(teacher_gains) > 1:
            teacher_interval, student_interval = t_interval95(teacher_gains), t_interval95(student_gains)
            if not teacher_interval[0] <= 0 <= teacher_interval[1]:
                ratio = statistics.fmean(student_gains) / statistics.fmean(teacher_gains)
        yield {
            "values": values,
            "against": first,
            "teacher": teacher,
            "model": student,
            "task": task,
            "runs": len(teacher_gains),
            "teacher_ne_gain_percent": statistics.fmean(teacher_gains),
            "teacher_interval95": teacher_interval,
            "ne_gain_percent": statistics.fmean(student_gains),
            "interval95": student_interval,
            "transfer_ratio": ratio,
        }


def _taught_tasks(results: Json) -> Iterator[tuple[str, str, str]]:
    """Yields teacher, student and task of a run; a teacher from elsewhere is no model and has no NE in the run."""
    models = results["models"]
    for teacher, students in results.get("supervision", {}).items():
        for student in students:
            for task in models[student]["tasks"]:
                if teacher in models and task in models[teacher]["tasks"]:
                    yield teacher, student, task


def _gain(before: Json, after: Json, model: str, task: str) -> float | None:
    """Computes the NE gain in percent from a run to another; None where the numbers of predicted examples differ."""
    first = before["models"].get(model, {"tasks": {}})["tasks"].get(task)
    second = after["models"].get(model, {"tasks": {}})["tasks"].get(task)
    if first is None or second is None or first["examples"] != second["examples"]:
        return None
    if first["ne"] is None or second["ne"] is None:
        return None
    return float(100 * (first["ne"] - second["ne"]) / first["ne"])


def ratio_cells(summary: Json) -> Iterator[dict[str, str]]:
    """Yields the rows as text, for the terminal and for the page."""
    for row in summary["transfer_ratios"]:
        yield {
            "point": point_label(summary, row["values"]),
            "against": point_label(summary, row["against"]),
            "teacher": row["teacher"],
            "model": row["model"],
            "task": row["task"],
            "runs": str(row["runs"]),
            "teacher_gain": _gain_text(row["teacher_ne_gain_percent"], row["teacher_interval95"]),
            "gain": _gain_text(row["ne_gain_percent"], row["interval95"]),
            "ratio": fixed(row["transfer_ratio"], 2),
        }


def _gain_text(gain: float, bounds: Sequence[float] | None) -> str:
    text = f"{signed(gain)}%"
    if bounds is None:
        return text
    return f"{text} ({interval((bounds[0], bounds[1]))})"


def sweep_ratio_table(summary: Json) -> FittedTable | None:
    """Builds a row for every transfer ratio of a sweep; None where all points have the same teachers."""
    if not summary["transfer_ratios"]:
        return None
    notes = []
    # Dashes in the column of ratios need a reason.
    if any(row["runs"] == 1 for row in summary["transfer_ratios"]):
        notes.append("a transfer ratio takes two seeds or more: of a single seed, the teacher's gain has no interval")
    names = ("point", "against", "teacher", "model", "task")
    figures = ("runs", "teacher's NE gain", "model's NE gain", "transfer ratio")
    table = FittedTable("points whose teachers differ", names, figures, notes)
    for cells in ratio_cells(summary):
        row = cells["runs"], cells["teacher_gain"], cells["gain"], cells["ratio"]
        table.add_row(tuple(cells[name] for name in names), row)
    return table
