"""Standard knowledge distillation as an exfm transfer strategy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from exfm import DistillationStrategy
from exfm.layers import head_soft_loss, soft_label_loss
from exfm.schema import LABEL_KINDS
from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec, TransferConfig

_EPSILON = 1e-6


class Direct(DistillationStrategy):
    """The serving heads learn the labels and the teacher's predictions at once (arXiv 2502.17494, section 2).

    Adds to the loss, for each taught task, with ``z_S`` the serving logit and ``p_F`` the teacher's probability::

        weight * T^2 * mean(bce(z_S / T, sigmoid(logit(p_F) / T)))

    With the temperature ``T = 1``, the default, it is ``bce(z_S, p_F)``. At a high temperature (arXiv 1503.02531) it is
    ``(z_S - logit(p_F))^2 / 8`` and a constant, so that distances count alike whatever the probability. ``p_F`` is then
    clipped to 1e-6 from 0 and 1.

    A label that is not binary is learned by its task head's loss against the teacher's prediction, at no temperature.

    It is the baseline that other strategies have to beat: whatever bias the teacher has moves into the serving head
    (theorem 3.1). It has no parameters.

    Args:
        config: see ``Config``.
        student: the student's tasks.
        teacher: the teacher's name and tasks.

    Raises:
        ValueError: there is no task to teach, or a temperature for a task that is not binary.
    """

    name: ClassVar[str] = "direct"
    label_kinds = LABEL_KINDS

    class Config(TransferConfig):
        """Fields of `direct`."""

        weight: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="Weight of the distillation loss beside the labels' loss."
        )
        temperature: float = Field(
            1.0, gt=0, allow_inf_nan=False, description="T: divides both logits; the loss is multiplied by its square."
        )

    def __init__(self, config: Config, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        self._weight, self._temperature = config.weight, config.temperature
        # In a mapping, because a module would become a part of the strategy's state.
        self._heads = {task: head for task, head in student.heads.items() if head.label_kind != "binary"}
        if config.temperature != 1:
            for task in self.tasks:
                self.check_kind(student.label(task), ("binary",), f"{self.name}: temperature: {config.temperature}")

    def loss(self, student: StudentOutput, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns the weighted losses of the taught tasks, summed, a scalar; a miss counts 0 in a mean."""
        terms: list[Tensor] = []
        for task in self.tasks:
            if task in teacher.hit and task in self._heads:
                output, soft = student.logits[task], teacher.probabilities[task]
                terms.append(head_soft_loss(self._heads[task], output, soft, teacher.hit[task], teacher.weight))
            elif task in teacher.hit:
                logit_B, soft_B = self._at_temperature(student.logits[task], teacher.probabilities[task])
                terms.append(soft_label_loss(logit_B, soft_B, teacher.hit[task], teacher.weight))
        return self._weight * self._temperature**2 * torch.stack(terms).sum()

    def _at_temperature(self, logit_B: Tensor, soft_B: Tensor) -> tuple[Tensor, Tensor]:
        """Divides the student's and the teacher's logits by T."""
        if self._temperature == 1.0:
            # As they are, because the logit of a probability and back would round.
            return logit_B, soft_B
        return logit_B / self._temperature, (soft_B.logit(_EPSILON) / self._temperature).sigmoid()
