"""ExFM's auxiliary head as an exfm transfer strategy.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from exfm import StudentOutput, StudentShape, Supervision, TeacherShape, TransferConfig, TransferStrategy
from exfm.layers import DistillationHead, LossWeight


class AuxiliaryHead(TransferStrategy):
    """The teacher's predictions are learned by heads of their own on the shared trunk (arXiv 2502.17494, section 3).

    Adds to the loss, for each taught task::

        w * mean(bce(z_D, min(alpha * p_F, 1)))

    ``z_D`` is the logit of the task's distillation head, ``p_F`` the teacher's probability, and the gradient from
    ``z_D`` to the trunk is multiplied by ``beta``. The serving head sees labels alone, so that it can converge to their
    optimum whatever the teacher's bias is (theorem 3.1); the trunk learns from both. The served model keeps the serving
    head only.

    Not published, so ours:

    - ``residual``: ``z_D = sg_S(z_S) + h_D(r)``. The distillation head is the serving head, whose weights this loss
      leaves alone (``sg_S``), and a head ``h_D`` of its own that starts at zero. Soft labels then move the trunk where
      the serving head reads it, as standard distillation does, and what is the teacher's alone stays in ``h_D``, so
      that theorem 3.1 still holds. ``residual: false`` is the published form, ``z_D = h_D(r)``;
    - the head starts at the teacher's mean: the first batch with a hit sets its bias to the logit of the mean target;
    - ``label_scale: auto``: ``alpha = max(1, 0.5 / m)``, with ``m`` the mean of ``p_F`` over about the last 100,000
      hits, so that the mean target of a rare label is at most 0.5;
    - ``weight: auto``: ``w = min((e_T + 10) / (e_S + 10), 10)``. Of the entropy ``n H`` of the last ``n`` labels with
      supervision, about 100,000, the teacher explains ``e_T = max(n (H - L_T), 0)`` nats and the serving head ``e_S``,
      with ``L_T`` and ``L_S`` their log losses. A task whose labels come late keeps ``w = 1``.

    Several entries under ``transfer`` learn from several teachers, each with heads of its own.

    Args:
        config: see ``Config``.
        student: the student's tasks and how its heads are made.
        teacher: the teacher's name and tasks.

    Raises:
        ValueError: there is no task to teach.
    """

    name: ClassVar[str] = "auxiliary_head"

    class Config(TransferConfig):
        """Fields of `auxiliary_head`. The paper does not publish its values; alpha 5, beta 20, w 10 circulate.

        The published form is `residual: false`, with a number as `weight`.
        """

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
        weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] = Field(
            "auto",
            description="w: weight of the distillation loss; 1 is standard distillation's, 10 circulates. "
            "auto: how much more of the recent labels the teacher explains than the student, from 0 to 10.",
        )
        residual: bool = Field(
            True, description="The head adds to the serving head's logit; false: it stands alone, as published."
        )

    def __init__(self, config: Config, student: StudentShape, teacher: TeacherShape) -> None:
        super().__init__(config, student, teacher)
        self.reads_trunk_logits = config.residual
        alpha, beta = config.label_scale, config.gradient_scale
        self.heads = nn.ModuleDict(
            {
                f"task_{task}": DistillationHead(student.new_head(), alpha, beta, residual=config.residual)
                for task in self.tasks
            }
        )
        self.weights = nn.ModuleDict({f"task_{task}": LossWeight(config.weight) for task in self.tasks})

    def loss(self, student: StudentOutput, supervision: Supervision, labels: Mapping[str, Tensor]) -> Tensor:
        """The weighted losses of the tasks, summed, a scalar; a miss counts 0 in a mean."""
        terms = [
            self._distillation(task, student, supervision, labels.get(task))
            for task in self.tasks
            if task in supervision.hit
        ]
        return torch.stack(terms).sum()

    def _distillation(
        self, task: str, student: StudentOutput, supervision: Supervision, label_B: Tensor | None
    ) -> Tensor:
        soft_B, hit_B = supervision.probabilities[task], supervision.hit[task]
        loss: Tensor = self.heads[f"task_{task}"](student, task, soft_B.unsqueeze(0), hit_B).sum()
        weight: float | Tensor = self.weights[f"task_{task}"](soft_B, student.logits[task], hit_B, label_B)
        return weight * loss
