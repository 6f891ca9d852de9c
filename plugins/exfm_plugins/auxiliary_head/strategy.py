"""ExFM's auxiliary head as an exfm transfer strategy.

Legend: B examples, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm import StudentOutput, StudentShape, Supervision, TeacherShape, TransferConfig, TransferStrategy


class AuxiliaryHead(TransferStrategy):
    """The teacher's predictions are learned by heads of their own on the shared trunk (arXiv 2502.17494, section 3).

    Adds ``weight * bce(z_D, min(label_scale * p_F, 1))`` to the loss, for each task that student and teacher share:
    ``z_D`` is the logit of the task's distillation head, ``p_F`` the teacher's probability. The serving head sees
    labels alone, so that it can converge to their optimum whatever the teacher's bias is (theorem 3.1); the trunk
    learns from both. The served model keeps the serving head only.

    Args:
        config: see ``Config``.
        student: the student's tasks and how its heads are made.
        teacher: the teacher's name and tasks.

    Raises:
        ValueError: student and teacher share no task.
    """

    name: ClassVar[str] = "auxiliary_head"

    class Config(TransferConfig):
        """Fields of `auxiliary_head`. The paper does not publish its values; alpha 5, beta 20, w 10 circulate."""

        label_scale: float = Field(
            1.0,
            gt=0,
            allow_inf_nan=False,
            description="Alpha: multiplies the teacher's probability, clipped at 1, for rare labels; 5 circulates too.",
        )
        gradient_scale: float = Field(
            1.0,
            ge=0,
            allow_inf_nan=False,
            description="Beta: multiplies the gradient from distillation head to trunk; 20 circulates too.",
        )
        weight: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="w: weight of the distillation loss; 10 circulates too."
        )

    def __init__(self, config: Config, student: StudentShape, teacher: TeacherShape) -> None:
        super().__init__(config, student, teacher)
        self._label_scale, self._gradient_scale = config.label_scale, config.gradient_scale
        self._weight = config.weight
        self.heads = nn.ModuleDict({_key(task): student.new_head() for task in self.tasks})

    def loss(self, student: StudentOutput, supervision: Supervision, labels: Mapping[str, Tensor]) -> Tensor:
        """``weight * mean(bce(z_D, ...))``, summed over the shared tasks, a scalar; a miss counts 0 in the mean."""
        trunk_BR = _scale_gradient(student.representation_BR, self._gradient_scale)
        terms = [self._distillation(task, trunk_BR, supervision) for task in self.tasks]
        return self._weight * torch.stack(terms).sum()

    def _distillation(self, task: str, trunk_BR: Tensor, supervision: Supervision) -> Tensor:
        logit_B = self.heads[_key(task)](trunk_BR)
        target_B = (self._label_scale * supervision.probabilities[task].detach()).clamp(max=1).to(logit_B.dtype)
        loss_B = binary_cross_entropy_with_logits(logit_B, target_B, reduction="none")
        return torch.where(supervision.hit[task], loss_B, 0.0).sum() / max(loss_B.shape[0], 1)


class _ScaleGradient(torch.autograd.Function):
    """The identity, bit for bit; its gradient is multiplied by a constant."""

    @staticmethod
    def forward(x: Tensor, scale: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.scale = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.scale, None


def _scale_gradient(x: Tensor, scale: float) -> Tensor:
    scaled: Tensor = _ScaleGradient.apply(x, scale)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return scaled


def _key(task: str) -> str:
    """A name torch accepts for a child module, for any task's name: no dots, no attribute's name."""
    return "task_" + task.replace("%", "%25").replace(".", "%2E")
