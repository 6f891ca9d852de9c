"""Reads a student's examples with their labels and the predictions of student, control and teacher.

Legend: E examples of a window, F examples that a teacher has rows for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from exfm.evaluation.intervals import match
from exfm.evaluation.metrics import Bools, Floats, Ints
from exfm.evaluation.predictions import PredictionReader, TaskRows, task_rows, window_indices
from exfm.interfaces.data_source import Window

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ServedRows:
    """Holds the probabilities that a teacher served to its students (F,).

    Attributes:
        probability: NaN where the teacher has no prediction.
        age_s: example time minus training watermark; None where it is not recorded.
        event_time_us: None where it is not recorded.
    """

    example_id: Ints
    probability: Floats
    age_s: Doubles | None = None
    event_time_us: Ints | None = None


class TeacherRows(Protocol):
    """Reads a teacher's supervision of a task."""

    def read(self, window: Window, example_id: Ints) -> ServedRows:
        """Reads rows of a window: all of a model's, those of the requested ids for a teacher from elsewhere."""
        ...


@dataclass(frozen=True)
class TaughtRows:
    """Holds the labelled examples of a window, as columns (E,).

    Attributes:
        student, control: probabilities, predicted before training on the example.
        served: the teacher's probability that the student learned from; NaN where there was none.
        fresh: the teacher's prediction before it trained on the example; NaN where it is missing.
        age_s, event_time_us: NaN and -1 where they are missing.
    """

    window: Window
    group: Ints
    label: Bools
    student: Doubles
    control: Doubles
    served: Doubles
    fresh: Doubles
    age_s: Doubles
    event_time_us: Ints

    def take(self, index: npt.NDArray[np.intp] | Bools) -> TaughtRows:
        """Selects examples by position or by mask."""
        columns = {name: column[index] for name, column in vars(self).items() if name != "window"}
        return TaughtRows(window=self.window, **columns)


@dataclass(frozen=True)
class TaughtTask:
    """Names a student's task and a teacher of it, with the control that the student is measured against.

    Attributes:
        teacher_task: the teacher's name for the task.
        first_window: index of the window from which on the run's figures count.
        first_served: index of the window from which on the teacher's supervision is stored.
    """

    model: str
    control: str
    task: str
    teacher: str
    teacher_task: str
    first_window: int
    first_served: int = 0


def taught_rows(
    reader: PredictionReader, taught: TaughtTask, served: TeacherRows, teacher_predicts: bool, scored: bool = True
) -> Iterator[TaughtRows]:
    """Yields the rows of a taught task window by window, on the examples that student and control predicted.

    Args:
        served: reads the teacher's supervision.
        teacher_predicts: whether the run has predictions of the teacher itself.
        scored: leave out the windows that the run's figures leave out.
    """
    # Listed before the loop, because a listing reads the manifests of all windows.
    control_windows = window_indices(reader, taught.control)
    teacher_windows: set[int] = set()
    if teacher_predicts:
        teacher_windows = window_indices(reader, taught.teacher)
    for window in reader.windows(taught.model):
        if window.index not in control_windows or window.index < taught.first_served:
            continue
        if scored and window.index < taught.first_window:
            continue
        student = task_rows(reader, taught.model, window, [taught.task])[taught.task]
        control = task_rows(reader, taught.control, window, [taught.task])[taught.task]
        # By example id, because `where` and `start` may give the models different rows of a window.
        student_index, control_index = match(student.example_id, control.example_id)
        student, control = student.take(student_index), control.take(control_index)
        fresh_E = np.full(student.label.size, np.nan)
        if window.index in teacher_windows:
            predicted = task_rows(reader, taught.teacher, window, [taught.teacher_task])[taught.teacher_task]
            student_index, teacher_index = match(student.example_id, predicted.example_id)
            fresh_E[student_index] = predicted.probability[teacher_index]
        yield _with_supervision(window, student, control, fresh_E, served.read(window, student.example_id))


def _with_supervision(
    window: Window, student: TaskRows, control: TaskRows, fresh_E: Doubles, rows: ServedRows
) -> TaughtRows:
    """Joins supervision to aligned rows of student and control by example id."""
    served_E, age_E = np.full(student.label.size, np.nan), np.full(student.label.size, np.nan)
    time_E = np.full(student.label.size, -1, np.int64)
    student_index, teacher_index = match(student.example_id, rows.example_id)
    served_E[student_index] = rows.probability[teacher_index]
    if rows.age_s is not None:
        age_E[student_index] = rows.age_s[teacher_index]
    if rows.event_time_us is not None:
        time_E[student_index] = rows.event_time_us[teacher_index]
    return TaughtRows(
        window=window,
        group=student.group,
        label=student.label,
        # float64, because differences of log losses are smaller than float32 resolves.
        student=student.probability.astype(np.float64),
        control=control.probability.astype(np.float64),
        served=served_E,
        fresh=fresh_E,
        age_s=age_E,
        event_time_us=time_E,
    )
