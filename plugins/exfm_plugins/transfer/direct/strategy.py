"""Standard knowledge distillation as an exfm transfer strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from exfm import DistillationStrategy
from exfm.layers import soft_label_loss
from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec, TransferConfig


class Direct(DistillationStrategy):
    """The serving heads learn the labels and the teacher's predictions at once (arXiv 2502.17494, section 2).

    Adds ``weight * bce(z_S, p_F)`` to the loss, for each taught task: ``z_S`` is the serving logit, ``p_F`` the
    teacher's probability. The baseline that other strategies have to beat: whatever bias the teacher has moves into the
    serving head (theorem 3.1). It has no parameters.

    Args:
        config: see ``Config``.
        student: the student's tasks.
        teacher: the teacher's name and tasks.

    Raises:
        ValueError: there is no task to teach.
    """

    name: ClassVar[str] = "direct"

    class Config(TransferConfig):
        """Fields of `direct`."""

        weight: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="Weight of the distillation loss beside the labels' loss."
        )

    def __init__(self, config: Config, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        self._weight = config.weight

    def loss(self, student: StudentOutput, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns ``weight * mean(bce(z_S, p_F))``, summed over the taught tasks; a miss counts 0 in the mean."""
        terms = [
            soft_label_loss(student.logits[task], teacher.probabilities[task], teacher.hit[task])
            for task in self.tasks
            if task in teacher.hit
        ]
        return self._weight * torch.stack(terms).sum()
