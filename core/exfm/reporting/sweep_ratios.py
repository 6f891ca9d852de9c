"""Transfer ratios of a sweep: what students gain where their teacher is better, over what the teacher gains."""

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
    """A point's values as a key, in no order."""
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
    seeds = [{SEED: seed} for seed in axes.get(SEED, ())] or [{}]
    for axis in (key for key in axes if key != SEED):
        others = [key for key in axes if key not in (axis, SEED)]
        for chosen in product(*(axes[key] for key in others)):
            equal = dict(zip(others, chosen, strict=True))
            first, *rest = ({**equal, axis: value} for value in axes[axis])
            for values in rest:
                pairs = []
                for seed in seeds:
                    before, after = (results.get(point_key({**point, **seed})) for point in (first, values))
                    if before is not None and after is not None:
                        pairs.append((before, after))
                yield from _rows(first, values, pairs)


def _rows(
    first: dict[str, str], values: dict[str, str], pairs: Sequence[tuple[Json, Json]]
) -> Iterator[dict[str, Any]]:
    for teacher, student, task in _taught(pairs[0][0]) if pairs else ():
        of_teacher, of_student = [], []
        for before, after in pairs:
            gains = _gain(before, after, teacher, task), _gain(before, after, student, task)
            if gains[0] is not None and gains[1] is not None:
                of_teacher.append(gains[0])
                of_student.append(gains[1])
        if not any(of_teacher):
            continue  # both points have the same teacher, or other examples
        teacher_interval = t_interval95(of_teacher) if len(of_teacher) > 1 else None
        is_certain = teacher_interval is not None and not teacher_interval[0] <= 0 <= teacher_interval[1]
        ratio = statistics.fmean(of_student) / statistics.fmean(of_teacher) if is_certain else None
        yield {
            "values": values,
            "against": first,
            "teacher": teacher,
            "model": student,
            "task": task,
            "runs": len(of_teacher),
            "teacher_ne_gain_percent": statistics.fmean(of_teacher),
            "teacher_interval95": teacher_interval,
            "ne_gain_percent": statistics.fmean(of_student),
            "interval95": t_interval95(of_student) if len(of_student) > 1 else None,
            "transfer_ratio": ratio,
        }


def _taught(results: Json) -> Iterator[tuple[str, str, str]]:
    """Yields teacher, student and task of a run; a teacher from elsewhere is no model and has no NE in the run."""
    models = results["models"]
    for teacher, students in results.get("supervision", {}).items():
        for student in students:
            for task in models[student]["tasks"]:
                if teacher in models and task in models[teacher]["tasks"]:
                    yield teacher, student, task


def _gain(before: Json, after: Json, model: str, task: str) -> float | None:
    """NE gain in percent from one run to another; None where the model did not predict equally many examples."""
    first, second = (run["models"].get(model, {"tasks": {}})["tasks"].get(task) for run in (before, after))
    if first is None or second is None or first["examples"] != second["examples"]:
        return None
    if first["ne"] is None or second["ne"] is None:
        return None
    return float(100 * (first["ne"] - second["ne"]) / first["ne"])


def ratio_cells(summary: Json) -> Iterator[dict[str, str]]:
    """Yields the rows in words, for the terminal and for the page."""
    for row in summary["transfer_ratios"]:
        yield {
            "point": point_label(summary, row["values"]),
            "against": point_label(summary, row["against"]),
            "teacher": row["teacher"],
            "model": row["model"],
            "task": row["task"],
            "runs": str(row["runs"]),
            "teacher_gain": _in_words(row["teacher_ne_gain_percent"], row["teacher_interval95"]),
            "gain": _in_words(row["ne_gain_percent"], row["interval95"]),
            "ratio": fixed(row["transfer_ratio"], 2),
        }


def _in_words(gain: float, bounds: Sequence[float] | None) -> str:
    return f"{signed(gain)}%" + ("" if bounds is None else f" ({interval((bounds[0], bounds[1]))})")


def sweep_ratio_table(summary: Json) -> FittedTable | None:
    """Every transfer ratio of a sweep, in one table; None where all points have the same teachers."""
    if not summary["transfer_ratios"]:
        return None
    is_single = any(row["runs"] == 1 for row in summary["transfer_ratios"])
    notes = ["a transfer ratio takes two seeds or more: of a single seed, the teacher's gain has no interval"]
    names = ("point", "against", "teacher", "model", "task")
    figures = ("runs", "teacher's NE gain", "model's NE gain", "transfer ratio")
    table = FittedTable("points whose teachers differ", names, figures, notes if is_single else ())
    for cells in ratio_cells(summary):
        row = cells["runs"], cells["teacher_gain"], cells["gain"], cells["ratio"]
        table.add_row(tuple(cells[name] for name in names), row)
    return table
