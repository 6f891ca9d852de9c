"""Rows of a diagnosis: a student's examples with the predictions of student, control and teacher, and the label.

Legend: E examples of a window, F examples that a teacher has rows of.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from exfm.evaluation.intervals import match
from exfm.evaluation.metrics import Bools, Floats, Ints
from exfm.evaluation.predictions import PredictionReader, TaskRows, task_rows
from exfm.interfaces.data_source import Window

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ServedRows:
    """Holds what a teacher served to its students for some examples (F,).

    Attributes:
        probability: NaN where the teacher has no prediction.
        age_s: example time minus training watermark; None where it is not known.
        event_time_us: None where it is not known.
    """

    example_id: Ints
    probability: Floats
    age_s: Doubles | None = None
    event_time_us: Ints | None = None


class TeacherRows(Protocol):
    """Reads a teacher's supervision of one task."""

    def read(self, window: Window, example_id: Ints) -> ServedRows:
        """Returns rows of a window; of a teacher from elsewhere, those of the ids asked for."""
        ...


@dataclass(frozen=True)
class LessonRows:
    """Holds the examples of one window whose label is known, (E,) each.

    Attributes:
        student, control: probabilities, predicted before training on the example.
        served: the teacher's probability as the student was taught it; NaN where there was none.
        fresh: what the teacher itself predicted before it trained on the example; NaN where it is not known.
        age_s, event_time_us: NaN and -1 where they are not known.
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

    def take(self, index: npt.NDArray[np.intp] | Bools) -> LessonRows:
        """Selects examples."""
        columns = {name: column[index] for name, column in vars(self).items() if name != "window"}
        return LessonRows(window=self.window, **columns)


@dataclass(frozen=True)
class Lesson:
    """Names one student, taught one task by one teacher.

    Attributes:
        teacher_task: the teacher's name for the task.
        first_window: index of the window from which on the run's figures count.
    """

    model: str
    control: str
    task: str
    teacher: str
    teacher_task: str
    first_window: int


def lesson_rows(
    reader: PredictionReader, lesson: Lesson, teacher: TeacherRows, teacher_predicts: bool, scored: bool = True
) -> Iterator[LessonRows]:
    """Yields the rows of a lesson window by window.

    Args:
        teacher_predicts: whether the run has predictions of the teacher itself.
        scored: leave out the windows that the run's figures leave out.
    """
    names = [lesson.control, *([lesson.teacher] if teacher_predicts else [])]
    has = {name: {window.index for window in reader.windows(name)} for name in names}
    for window in reader.windows(lesson.model):
        if window.index not in has[lesson.control] or (scored and window.index < lesson.first_window):
            continue
        student = task_rows(reader, lesson.model, window, [lesson.task])[lesson.task]
        control = task_rows(reader, lesson.control, window, [lesson.task])[lesson.task]
        of_student, of_control = match(student.example_id, control.example_id)
        student, control = student.take(of_student), control.take(of_control)
        fresh = np.full(student.label.size, np.nan)
        if teacher_predicts and window.index in has[lesson.teacher]:
            predicted = task_rows(reader, lesson.teacher, window, [lesson.teacher_task])[lesson.teacher_task]
            of_student, of_teacher = match(student.example_id, predicted.example_id)
            fresh[of_student] = predicted.probability[of_teacher]
        yield _with_supervision(window, student, control, fresh, teacher.read(window, student.example_id))


def _with_supervision(
    window: Window, student: TaskRows, control: TaskRows, fresh_E: Doubles, rows: ServedRows
) -> LessonRows:
    served_E, age_E = np.full(student.label.size, np.nan), np.full(student.label.size, np.nan)
    time_E = np.full(student.label.size, -1, np.int64)
    of_student, of_teacher = match(student.example_id, rows.example_id)
    served_E[of_student] = rows.probability[of_teacher]
    if rows.age_s is not None:
        age_E[of_student] = rows.age_s[of_teacher]
    if rows.event_time_us is not None:
        time_E[of_student] = rows.event_time_us[of_teacher]
    return LessonRows(
        window=window,
        group=student.group,
        label=student.label,
        student=student.probability.astype(np.float64),
        control=control.probability.astype(np.float64),
        served=served_E,
        fresh=fresh_E,
        age_s=age_E,
        event_time_us=time_E,
    )
