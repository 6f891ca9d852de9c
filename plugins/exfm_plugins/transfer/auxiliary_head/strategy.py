"""ExFM's auxiliary head as an exfm transfer strategy.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from exfm import DistillationStrategy
from exfm.layers import DistillationHeads
from exfm.schema import LABEL_KINDS
from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec, TransferConfig


class AuxiliaryHead(DistillationStrategy):
    """Separate heads on the shared trunk learn the teacher's predictions (arXiv 2502.17494, section 3).

    Adds to the loss, for each taught task::

        w * mean(bce(z_D, min(alpha * p_F, 1)))

    ``z_D`` is the logit of the task's distillation head, ``p_F`` the teacher's probability, and the gradient from
    ``z_D`` to the trunk is multiplied by ``beta``. The serving head sees labels alone, so that it can converge to their
    optimum whatever the teacher's bias is (theorem 3.1); the trunk learns from both. The served model keeps the serving
    head only.

    Not published, so ours:

    - the head starts at the teacher's mean: the first batch with a hit sets its bias to the logit of the mean target;
    - a label that is not binary is learned by its task head's loss against the teacher's prediction, in the serving
      head's unit; ``alpha`` is of probabilities alone;
    - ``label_scale: auto``: ``alpha = max(1, 0.5 / m)``, with ``m`` the mean of ``p_F`` over about the last 100,000
      hits, so that the mean target of a rare label is at most 0.5.

    Several entries under ``transfer`` learn from several teachers, each with separate heads.

    Args:
        config: see ``Config``.
        student: the student's tasks and the builder of its heads.
        teacher: the teacher's name and tasks.

    Raises:
        ValueError: there is no task to teach, or a label scale for a task that is not binary.
    """

    name: ClassVar[str] = "auxiliary_head"
    label_kinds = LABEL_KINDS

    class Config(TransferConfig):
        """Fields of `auxiliary_head`. The paper does not publish its values; alpha 5, beta 20, w 10 circulate."""

        label_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = Field(
            1.0,
            description="Alpha: multiplies the teacher's probability, clipped at 1, for rare labels; 5 circulates too. "
            "auto: 0.5 over the teacher's recent mean, at least 1.",
        )
        gradient_scale: float = Field(
            1.0,
            ge=0,
            allow_inf_nan=False,
            description="Beta: multiplies the gradient from distillation head to trunk; 20 circulates too.",
        )
        weight: float = Field(
            2.0,
            ge=0,
            allow_inf_nan=False,
            description="w: weight of the distillation loss; 1 is standard distillation's, 10 circulates.",
        )

        @model_validator(mode="before")
        @classmethod
        def _fields_of_0_1_are_gone(cls, fields: Any) -> Any:
            section = fields if isinstance(fields, Mapping) else {}
            if "residual" in section or section.get("weight") == "auto":
                key = "residual" if "residual" in section else "weight: auto"
                raise ValueError(
                    f"{key}: exfm 0.1 had this, and a biased teacher switched transfer off through it, or moved the "
                    "served model; leave it out: every head stands alone, as published, with a number as its weight"
                )
            return fields

    def __init__(self, config: Config, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        self._weight = config.weight
        if config.label_scale != 1:
            for task in self.tasks:
                self.check_kind(student.label(task), ("binary",), f"{self.name}: label_scale: {config.label_scale}")
        self.heads = DistillationHeads(
            self.tasks, student.new_head, config.label_scale, config.gradient_scale, student.heads
        )

    @property
    def decomposes(self) -> bool:
        """Tells whether the heads' losses do: not before each has started from a batch's mean."""
        return self.heads.has_started

    def sums(self, student: StudentOutput, teacher: TeacherOutput) -> dict[str, Tensor]:
        """Returns the sums of the teacher's probabilities by task, for ``label_scale: auto``."""
        return self.heads.sums(teacher)

    def loss(self, student: StudentOutput, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns the weighted losses of the tasks, summed, a scalar; a miss counts 0 in a mean."""
        terms = [
            self.heads.of_task(task)(
                student,
                teacher.probabilities[task].unsqueeze(0),
                teacher.hit[task],
                teacher.weight,
                teacher.sums.get(task),
            )
            for task in self.tasks
            if task in teacher.hit
        ]
        return self._weight * torch.cat(terms).sum()
