"""Computes NE gains of models over their controls, and the gains of their teachers over the same controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exfm.evaluation.intervals import PairedLosses, gain_share, match
from exfm.evaluation.predictions import PredictionReader, TaskRows, common_windows, task_rows, window_indices

Interval = Callable[[PairedLosses], list[float] | None]
"""Computes the 95% interval of a gain, in the form of results.json."""


@dataclass(frozen=True)
class ControlComparison:
    """Names a model to compare with its control.

    Attributes:
        control: the baseline, on the examples that both predicted.
        teachers: the models that the model learned from.
        external: teachers without a predictions file, and their tasks; the model's file has their predictions.
    """

    model: str
    control: str
    teachers: tuple[str, ...] = ()
    external: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass
class _TaskLosses:
    """Accumulates the losses of a model and its control on a task.

    Attributes:
        paired: on the examples that both predicted.
        shared: by teacher, of the student and of the teacher, on the examples that the teacher predicted too.
    """

    paired: PairedLosses = field(default_factory=PairedLosses)
    shared: dict[str, tuple[PairedLosses, PairedLosses]] = field(default_factory=dict)

    def add(self, model: TaskRows, control: TaskRows, teachers: Mapping[str, TaskRows]) -> None:
        """Adds the rows of a window."""
        model_index, control_index = match(model.example_id, control.example_id)
        model, control = model.take(model_index), control.take(control_index)
        _add_losses(self.paired, model, control)
        for name, teacher in teachers.items():
            # After ``take`` the rows of model and control are aligned, so that the same index serves both.
            student_index, teacher_index = match(model.example_id, teacher.example_id)
            student_losses, teacher_losses = self.shared[name]
            taught, shared = control.take(student_index), teacher.take(teacher_index)
            _add_losses(student_losses, model.take(student_index), taught, shared)
            _add_losses(teacher_losses, shared, taught, shared)


def _add_losses(losses: PairedLosses, model: TaskRows, control: TaskRows, sampled: TaskRows | None = None) -> None:
    """Adds the losses of aligned rows.

    Args:
        sampled: the same rows of a teacher, whose log may be sampled otherwise: a row is in both logs with the smaller
            of both rates, and weighs its inverse.
    """
    weights = [rows.weight for rows in (control, sampled or control) if rows.weight is not None]
    losses.add(
        control.group,
        control.label,
        model.losses(),
        control.losses(),
        np.max(weights, axis=0) if weights else None,
        control.kind,
        control.classes,
    )


def add_common(losses: PairedLosses, model: TaskRows, control: TaskRows) -> None:
    """Adds the losses of a model and its control on the examples that both predicted, matched by example id."""
    model_index, control_index = match(model.example_id, control.example_id)
    _add_losses(losses, model.take(model_index), control.take(control_index))


def compare_with_control(
    reader: PredictionReader,
    tasks_of_model: Mapping[str, Sequence[str]],
    comparison: ControlComparison,
    first_us: int,
    interval95: Interval,
) -> list[dict[str, Any]]:
    """Compares a model with its control: its entries of ``gains`` in results.json.

    Args:
        tasks_of_model: each model's tasks.
        first_us: start of the first window that counts.
    """
    model, control = comparison.model, comparison.control
    tasks = tuple(task for task in tasks_of_model[model] if task in tasks_of_model[control])
    tasks_of_teacher: dict[str, tuple[str, ...]] = {}
    windows_of_teacher: dict[str, set[int]] = {}
    for name in comparison.teachers:
        tasks_of_teacher[name] = tuple(task for task in tasks if task in tasks_of_model[name])
        windows_of_teacher[name] = window_indices(reader, name)
    losses: dict[str, _TaskLosses] = {}
    for task in tasks:
        losses[task] = _TaskLosses()
        for name, taught in {**tasks_of_teacher, **dict(comparison.external)}.items():
            if task in taught:
                losses[task].shared[name] = PairedLosses(), PairedLosses()
    for window in common_windows(reader, model, control, first_us):
        rows = task_rows(reader, model, window, tasks)
        control_rows = task_rows(reader, control, window, tasks)
        teacher_rows: dict[str, dict[str, TaskRows]] = {}
        for name, shared in tasks_of_teacher.items():
            if window.index in windows_of_teacher[name]:
                teacher_rows[name] = task_rows(reader, name, window, shared)
        for task in tasks:
            of_task = {name: by_task[task] for name, by_task in teacher_rows.items() if task in by_task}
            # Files of exfm before it kept the predictions of teachers from elsewhere have none.
            for name in rows[task].external.keys() & losses[task].shared.keys():
                of_task[name] = rows[task].as_predicted_by(name)
            losses[task].add(rows[task], control_rows[task], of_task)
    entries: list[dict[str, Any]] = []
    for task in tasks:
        entries += _entries(comparison, task, losses[task], interval95)
    return entries


def _entries(
    comparison: ControlComparison, task: str, losses: _TaskLosses, interval95: Interval
) -> Iterator[dict[str, Any]]:
    """Yields an entry for every teacher that has the task; a single entry, without teacher, where none has."""
    base = {
        "model": comparison.model,
        "control": comparison.control,
        "task": task,
        "examples": losses.paired.examples,
        "ne_gain_percent": losses.paired.gain,
        "interval95": interval95(losses.paired),
    }
    for teacher, (student_losses, teacher_losses) in losses.shared.items():
        teacher_interval95 = interval95(teacher_losses)
        share = gain_share(student_losses, teacher_losses, teacher_interval95)
        yield base | {
            "teacher": teacher,
            "teacher_ne_gain_percent": teacher_losses.gain,
            "teacher_interval95": teacher_interval95,
            "gain_share": share,
            "transfer_ratio": share,  # its name in 0.1.0, which scripts read
        }
    if not losses.shared:
        missing = ("teacher", "teacher_ne_gain_percent", "teacher_interval95", "gain_share", "transfer_ratio")
        yield base | dict.fromkeys(missing)
