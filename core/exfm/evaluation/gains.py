"""NE gains of models over their controls, and what their teachers gain over the same controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from exfm.evaluation.intervals import PairedLosses, gain_share, match
from exfm.evaluation.metrics import log_losses
from exfm.evaluation.predictions import PredictionReader, TaskRows, common_windows, task_rows

Interval = Callable[[PairedLosses], list[float] | None]
"""Makes the 95% interval of a gain, as results.json has it."""


@dataclass(frozen=True)
class Arm:
    """A comparison to report.

    Attributes:
        control: the model that it is measured against, on the examples that both predicted.
        teachers: the models it learned from.
        external: teachers without a predictions file, and their tasks; the model's file has their predictions.
    """

    model: str
    control: str
    teachers: tuple[str, ...] = ()
    external: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass
class _Comparison:
    """Losses of an arm on one task, over the control's examples, and again over those that a teacher has too."""

    paired: PairedLosses = field(default_factory=PairedLosses)
    shared: dict[str, tuple[PairedLosses, PairedLosses]] = field(default_factory=dict)

    def add(self, model: TaskRows, control: TaskRows, teachers: dict[str, TaskRows]) -> None:
        of_model, of_control = match(model.example_id, control.example_id)
        model, control = model.take(of_model), control.take(of_control)
        _add_losses(self.paired, model, control)
        for name, teacher in teachers.items():
            of_student, of_teacher = match(model.example_id, teacher.example_id)
            student_losses, teacher_losses = self.shared[name]
            _add_losses(student_losses, model.take(of_student), control.take(of_student))
            _add_losses(teacher_losses, teacher.take(of_teacher), control.take(of_student))


def _add_losses(losses: PairedLosses, model: TaskRows, control: TaskRows) -> None:
    losses.add(
        control.group,
        control.label,
        log_losses(model.probability, model.label),
        log_losses(control.probability, control.label),
    )


def add_common(losses: PairedLosses, model: TaskRows, control: TaskRows) -> None:
    """Adds the losses of a model and its control on the examples that both predicted, matched by example id."""
    of_model, of_control = match(model.example_id, control.example_id)
    _add_losses(losses, model.take(of_model), control.take(of_control))


def compare_arm(
    reader: PredictionReader,
    tasks_of: Mapping[str, Sequence[str]],
    arm: Arm,
    first_us: int,
    interval95: Interval,
) -> list[dict[str, Any]]:
    """Compares an arm with its control: its entries of ``gains`` in results.json.

    Args:
        tasks_of: each model's tasks.
        first_us: start of the first window that counts.
    """
    tasks = tuple(task for task in tasks_of[arm.model] if task in tasks_of[arm.control])
    teachers = {name: tuple(task for task in tasks if task in tasks_of[name]) for name in arm.teachers}
    known = {**teachers, **dict(arm.external)}
    comparisons = {
        task: _Comparison(
            shared={name: (PairedLosses(), PairedLosses()) for name, taught in known.items() if task in taught}
        )
        for task in tasks
    }
    has = {name: {window.index for window in reader.windows(name)} for name in teachers}
    for window in common_windows(reader, arm.model, arm.control, first_us):
        rows = task_rows(reader, arm.model, window, tasks)
        control = task_rows(reader, arm.control, window, tasks)
        taught = {
            name: task_rows(reader, name, window, shared)
            for name, shared in teachers.items()
            if window.index in has[name]
        }
        for task, comparison in comparisons.items():
            of_teachers = {name: by_task[task] for name, by_task in taught.items() if task in by_task}
            # Files of exfm before it kept the predictions of teachers from elsewhere have none.
            here = rows[task].external.keys() & comparison.shared.keys()
            of_teachers |= {name: rows[task].as_predicted_by(name) for name in here}
            comparison.add(rows[task], control[task], of_teachers)
    return [entry for task, comparison in comparisons.items() for entry in _entries(arm, task, comparison, interval95)]


def _entries(arm: Arm, task: str, comparison: _Comparison, interval95: Interval) -> Iterator[dict[str, Any]]:
    """Yields an entry for every teacher that has the task; a single entry, without teacher, where none has."""
    base = {
        "model": arm.model,
        "control": arm.control,
        "task": task,
        "examples": comparison.paired.examples,
        "ne_gain_percent": comparison.paired.gain,
        "interval95": interval95(comparison.paired),
    }
    for teacher, (student_losses, teacher_losses) in comparison.shared.items():
        of_teacher = interval95(teacher_losses)
        share = gain_share(student_losses, teacher_losses, of_teacher)
        yield base | {
            "teacher": teacher,
            "teacher_ne_gain_percent": teacher_losses.gain,
            "teacher_interval95": of_teacher,
            "gain_share": share,
            "transfer_ratio": share,  # its name in 0.1.0, which scripts read
        }
    if not comparison.shared:
        unknown = ("teacher", "teacher_ne_gain_percent", "teacher_interval95", "gain_share", "transfer_ratio")
        yield base | dict.fromkeys(unknown)
