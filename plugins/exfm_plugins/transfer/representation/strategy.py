"""Representation alignment as an exfm transfer strategy.

Legend: B examples, R width of the student's representation, E width of the teacher's embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from exfm import DistillationStrategy
from exfm.layers import Standardizer, batch_mean, mlp, scale_gradient
from exfm.schema import LABEL_KINDS
from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec, TransferConfig

_TEMPERATURE = 0.1
_MOMENTS = "moments"


class Representation(DistillationStrategy):
    """The student's representation, projected, is drawn to the teacher's embedding of the same example.

    With ``r`` the student's representation, ``e`` the teacher's embedding and ``m, v`` its running mean and variance::

        z = P(r)      t = (e - m) / sqrt(v)      loss = w * mean(l(z, t))

        cosine        l = 1 - cos(z, t)
        mse           l = |z - t|^2 / E
        contrastive   l_i = -(log softmax_j(cos(z_i, t_j) / T)[i] + log softmax_j(cos(z_j, t_i) / T)[i]) / 2

    GEM names representation learning among its transfer techniques (Meta engineering, 2025-11-10) and publishes no
    specification; the losses are those of FitNets (mse, arXiv 1412.6550) and of InfoNCE within the batch, in both
    directions (arXiv 1807.03748; for distillation arXiv 1910.10699). The gradient reaches the trunk, multiplied by
    ``gradient_scale``, and the projection ``P``, never a serving head. ``P`` is not served.

    An example counts where any taught task is hit. In the contrastive loss a miss is neither an anchor nor among the
    others; two examples of equal embedding count as different.

    Not published, so ours:

    - ``P`` leads from the student's space to the teacher's: the narrow side is not asked to fill the wide one;
    - a stream has no fixed scale, and the teacher goes on training: ``m`` and ``v`` are over about the last 100,000
      hits, those of the batch added after it was used. So no example is measured by itself, and the first batch with a
      hit teaches nothing. ``v`` is at least 1e-4 of its mean over the columns, as finer differences are not stored,
      and ``t`` is clipped to 10;
    - ``fallback`` is refused: embeddings of two teachers lie in two spaces. Each can have a separate entry.

    Args:
        config: see ``Config``.
        student: the student's tasks and the width of its representation.
        teacher: the teacher's tasks and the width of its embeddings.

    Raises:
        ValueError: the teacher stores no embeddings, or there is no task to teach.

    Example::

        models:
          fm: {backbone: {name: wukong}, supervision: {embedding: float16}}
          vm: {backbone: {name: dlrm}, transfer: [{name: representation, teacher: fm, loss: contrastive}]}
    """

    name: ClassVar[str] = "representation"
    requires = frozenset({"embedding"})
    label_kinds = LABEL_KINDS

    class Config(TransferConfig):
        """Fields of `representation`; the defaults are ours."""

        loss: Literal["cosine", "mse", "contrastive"] = Field(
            "cosine", description="How far the projected representation is from the embedding."
        )
        temperature: float | None = Field(
            None, gt=0, allow_inf_nan=False, description="T: divides the contrastive loss's cosines; 0.1 by default."
        )
        hidden: tuple[PositiveInt, ...] = Field(
            (), description="Widths of the projection's hidden layers; without any it is linear."
        )
        gradient_scale: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="Multiplies the gradient from projection to trunk."
        )
        weight: float = Field(1.0, ge=0, allow_inf_nan=False, description="w: weight of the loss.")

        @model_validator(mode="after")
        def _fields_fit_together(self) -> Representation.Config:
            if self.temperature is not None and self.loss != "contrastive":
                raise ValueError(f"temperature: {self.temperature} needs loss: contrastive, not {self.loss}")
            if self.fallback:
                raise ValueError(
                    f"fallback: embeddings of {', '.join(self.teachers)} lie in different spaces; "
                    "give each teacher an entry of its own under transfer"
                )
            return self

    def __init__(self, config: Config, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        assert teacher.embedding_dim is not None
        self._loss, self._temperature = config.loss, config.temperature or _TEMPERATURE
        self._gradient_scale, self._weight = config.gradient_scale, config.weight
        self.projection = mlp((student.representation_dim, *config.hidden, teacher.embedding_dim), "silu")
        self.standard = Standardizer(teacher.embedding_dim)

    @property
    def decomposes(self) -> bool:
        """Tells whether each example is compared with its own embedding alone: not in a contrastive loss."""
        return self._loss != "contrastive"

    def sums(self, student: StudentOutput, teacher: TeacherOutput) -> dict[str, Tensor]:
        """Returns the sums from which the embeddings' mean and variance are updated."""
        assert teacher.embedding is not None
        embedding_BE = teacher.embedding.detach().to(student.representation_BR.dtype)
        hit_B = _any_hit(teacher)
        counted_B = hit_B if teacher.weight is None else hit_B * teacher.weight
        return {_MOMENTS: self.standard.sums(embedding_BE, counted_B)}

    def loss(self, student: StudentOutput, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """``weight * mean(l)``, a scalar; a miss counts 0 in the mean. Then the embeddings' statistics are updated."""
        assert teacher.embedding is not None
        sums = teacher.sums or self.sums(student, teacher)
        counted_B = _any_hit(teacher) & self.standard.started
        trunk_BR = scale_gradient(student.representation_BR, self._gradient_scale)
        student_BE = self.projection(trunk_BR).to(trunk_BR.dtype)
        embedding_BE = teacher.embedding.detach().to(trunk_BR.dtype)
        teacher_BE = torch.where(counted_B.unsqueeze(1), self.standard(embedding_BE), 0.0)
        loss_B = self._distance(student_BE, teacher_BE, counted_B)
        self.standard.add_sums(sums[_MOMENTS])
        return self._weight * batch_mean(torch.where(counted_B, loss_B, 0.0), counted_B, teacher.weight)

    def _distance(self, student_BE: Tensor, teacher_BE: Tensor, counted_B: Tensor) -> Tensor:
        if self._loss == "cosine":
            return 1 - cosine_similarity(student_BE, teacher_BE, dim=1)
        if self._loss == "mse":
            return (student_BE - teacher_BE).square().mean(dim=1)
        logit_BB = normalize(student_BE) @ normalize(teacher_BE).T / self._temperature
        # Finite, where infinity would make a miss's own row NaN.
        logit_BB = logit_BB.masked_fill(~(counted_B & counted_B.unsqueeze(1)), torch.finfo(logit_BB.dtype).min)
        return -(logit_BB.log_softmax(0) + logit_BB.log_softmax(1)).diagonal() / 2


def _any_hit(teacher: TeacherOutput) -> Tensor:
    """Masks the examples (B,) of which any taught task is hit."""
    return torch.stack(list(teacher.hit.values())).any(dim=0)
