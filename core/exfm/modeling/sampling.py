"""Converts logits between all traffic and a log whose negatives are down-sampled.

Legend: B examples.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from exfm.interfaces.distillation_strategy import StudentOutput, TeacherOutput
from exfm.interfaces.schema import FeatureSchema

_EPSILON = 1e-6  # about where float32 probabilities end next to 1
Output = TypeVar("Output", bound=StudentOutput)


class LogSampling:
    """Adds the offset that sampling gives to the log odds of a log's rows.

    A log that keeps all positives and the share ``r`` of the negatives has odds that are ``1 / r`` times those of all
    traffic: ``z_log = z - log r``. Models predict ``z``, so that serving corrects nothing; losses compare ``z_log``
    with the labels of the log, and with the teacher's logit after the same offset. So each row counts once, and a
    gradient has less variance than where a kept negative weighs ``1 / r`` (King and Zeng 2001).

    Args:
        schema: gives the sampling rates of the labels.
    """

    def __init__(self, schema: FeatureSchema) -> None:
        self._offsets = {
            label.name: -math.log(label.sampling_rate) for label in schema.labels if label.sampling_rate < 1
        }

    def offset(self, task: str) -> float:
        """Returns the difference of a task's logits in the log from those of all traffic."""
        return self._offsets.get(task, 0.0)

    def in_log(self, output: Output) -> Output:
        """Returns a student's output with the logits that its rows have in the log."""
        logits = {task: logit_B + self.offset(task) for task, logit_B in output.logits.items() if task in self._offsets}
        return replace(output, logits={**output.logits, **logits}) if logits else output

    def teacher_in_log(self, teacher: TeacherOutput) -> TeacherOutput:
        """Returns a teacher's output with the probabilities that its rows have in the log."""
        return self._moved(teacher, 1.0)

    def of_all_traffic(self, teacher: TeacherOutput) -> TeacherOutput:
        """Returns a teacher's output in the log with the probabilities of all traffic."""
        return self._moved(teacher, -1.0)

    def _moved(self, teacher: TeacherOutput, sign: float) -> TeacherOutput:
        moved: dict[str, Tensor] = {}
        for task in teacher.probabilities.keys() & self._offsets.keys():
            logit_B = teacher.probabilities[task].logit(_EPSILON)
            moved[task] = (logit_B + sign * self._offsets[task]).sigmoid()
        return replace(teacher, probabilities={**teacher.probabilities, **moved}) if moved else teacher
