"""Distils soft labels and vectors: the loss, a separate head for soft labels, and vectors of equal scale.

Legend: B examples, R width of the representation, L soft labels of an example, V averaged values, E width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm.interfaces.distillation_strategy import StudentOutput, TeacherOutput
from exfm.interfaces.task_head import TaskHead
from exfm.layers.gradient import scale_gradient

_RECENT = 100_000  # a mean of a label of 0.1 % is then from about 100 positives
_EPSILON = 1e-6  # below the base rates of rare labels, and above float32's step of 6e-8 just below 1
_MEAN_TARGET = 0.5  # the entropy of a binary label is largest there
_LEAST_VARIANCE = 1e-4  # of the mean over the columns: finer differences are not stored
_LARGEST = 10.0


def batch_mean(losses_LB: Tensor, hit_B: Tensor, weight_B: Tensor | None) -> Tensor:
    """Averages losses over a batch; a miss counts as 0.

    Args:
        losses_LB: (..., B), finite for misses too.
        hit_B: (B,) bool.
        weight_B: (B,) the weight of each example; None where each weighs 1.

    Returns:
        (...,); 0 for an empty batch.
    """
    # Divide by the batch and not by the hits: the weight of a hit then does not depend on how many there are.
    if weight_B is None:
        return (losses_LB * hit_B).sum(-1) / max(losses_LB.shape[-1], 1)
    return (losses_LB * (hit_B * weight_B)).sum(-1) / weight_B.sum().clamp(min=torch.finfo(weight_B.dtype).tiny)


def soft_label_loss(logit_B: Tensor, target_LB: Tensor, hit_B: Tensor, weight_B: Tensor | None = None) -> Tensor:
    """Returns the mean over the batch of the cross-entropy of logit and soft label; a miss counts as 0.

    Args:
        logit_B: (B,).
        target_LB: (..., B) probabilities, without gradient. Values of misses are ignored, if they are finite.
        hit_B: (B,) bool, marks examples that have soft labels.
        weight_B: (B,) the weight of each example; None where each weighs 1.

    Returns:
        (...,), a loss for each row of targets; 0 for an empty batch.
    """
    # Stop-gradient: a student must not move its teacher.
    target_LB = target_LB.detach().to(logit_B.dtype)
    loss_LB = binary_cross_entropy_with_logits(logit_B.expand_as(target_LB), target_LB, reduction="none")
    return batch_mean(loss_LB, hit_B, weight_B)


def head_soft_loss(
    head: TaskHead, output: Tensor, soft: Tensor, hit_B: Tensor, weight_B: Tensor | None = None
) -> Tensor:
    """Returns the mean over the batch of a task head's loss against a teacher's predictions; a miss counts as 0.

    Before the head has seen a label all are misses, because its outputs have no unit yet.

    Args:
        output: the outputs of the head, (B,) or (B, K).
        soft: predictions, (B,) or (B, C), without gradient. Values of misses are ignored, if they are finite.
        hit_B: (B,) bool, marks examples that have soft labels.
        weight_B: (B,) the weight of each example; None where each weighs 1.
    """
    counted_B = hit_B & head.started
    if not soft.shape[0]:
        return batch_mean(head.soft_loss(output, soft), counted_B, weight_B)
    # The first hit's in the place of values that mean nothing, whose losses may not be finite. By index_select, because
    # indexing by a number of a device would wait for the device.
    first = soft.index_select(0, counted_B.int().argmax().view(1))
    kept_B = counted_B if soft.dim() == 1 else counted_B.unsqueeze(1)
    soft = torch.where(kept_B, soft, first).detach().to(output.dtype)
    loss_B = head.soft_loss(output, soft)
    return batch_mean(torch.where(counted_B, loss_B, 0.0), counted_B, weight_B)


class DistillationHead(nn.Module):
    """Learns the soft labels of a task in a head beside the serving head (arXiv 2502.17494, section 3).

    The loss is ``bce(z_D, min(alpha p, 1))`` for each soft label ``p``; the gradient to the trunk is multiplied by
    ``beta``.

    ``alpha: auto`` is ours: ``alpha = max(1, 0.5 / m)``, where ``m`` is the mean of the first soft label over about the
    last 100,000 hits, this batch included. So the mean target of a rare label is at most 0.5, whatever its base rate.

    The initial bias is ours too: like serving heads for labels, the first batch with a hit sets the last bias to the
    logit of the mean scaled label, so that the trunk need not learn it.

    Args:
        head: representation (B, R) -> logits (B,). Without a bias in its last linear layer, no bias is set.
        label_scale: alpha.
        gradient_scale: beta.
    """

    started: Tensor

    def __init__(self, head: nn.Module, label_scale: float | Literal["auto"], gradient_scale: float) -> None:
        super().__init__()
        self.head = head
        self._label_scale, self._gradient_scale = label_scale, gradient_scale
        self.mean = RecentMeans(1) if label_scale == "auto" else None
        self.register_buffer("started", torch.tensor(False))

    @property
    def has_started(self) -> bool:
        """Tells whether the bias is set, so that the next losses are means over examples."""
        return bool(self.started)

    @property
    def decomposes(self) -> bool:
        """Tells whether the next losses are means over examples, independent of each other, and change no buffer."""
        return self.mean is None and self.has_started

    def sums(self, soft_B: Tensor, counted_B: Tensor) -> Tensor | None:
        """Returns the sums of the first soft label that the recent mean adds; None without such a mean.

        Args:
            soft_B: (B,) soft labels.
            counted_B: (B,) the weight of each hit, 0 of a miss.
        """
        return None if self.mean is None else self.mean.sums(soft_B.unsqueeze(0), counted_B)

    def forward(
        self,
        student: StudentOutput,
        soft_LB: Tensor,
        hit_B: Tensor,
        weight_B: Tensor | None = None,
        sums: Tensor | None = None,
    ) -> Tensor:
        """Returns the losses (L,) of ``soft_label_loss``.

        Args:
            student: output of the student's forward pass.
            soft_LB: (L, B) soft labels.
            hit_B: (B,) bool, marks examples that have soft labels.
            weight_B: (B,) the weight of each example; None where each weighs 1.
            sums: those of the whole batch, where the examples are the rows of a single process.
        """
        counted_B = hit_B if weight_B is None else hit_B * weight_B
        sums = self.sums(soft_LB[0], counted_B) if sums is None else sums
        target_LB = (self._alpha(sums) * soft_LB).clamp(max=1)
        # Reading the flag on a CPU costs less than the call that it saves. On a GPU, reading it would synchronise.
        if not (self.started.device.type == "cpu" and self.started):
            self._start(target_LB[0], counted_B)
        logit_B = self.head(scale_gradient(student.representation_BR, self._gradient_scale))
        return soft_label_loss(logit_B, target_LB, hit_B, weight_B)

    def _alpha(self, sums: Tensor | None) -> float | Tensor:
        if self.mean is None or sums is None:
            assert self._label_scale != "auto"
            return self._label_scale
        self.mean.add_sums(sums)
        # Before the first hit the mean is 0; the clamp avoids an infinity, and no target is used yet.
        alpha: Tensor = (_MEAN_TARGET / self.mean()[0].clamp(min=_EPSILON)).clamp(min=1)
        return alpha

    # Without branches on tensors, because these would synchronise a GPU.
    @torch.no_grad()
    def _start(self, target_B: Tensor, counted_B: Tensor) -> None:
        total = counted_B.sum()
        mean = (target_B * counted_B).sum() / total.clamp(min=torch.finfo(target_B.dtype).tiny)
        now = ~self.started & (total > 0)
        bias = [module for module in self.head.modules() if isinstance(module, nn.Linear)][-1].bias
        if bias is not None:
            bias.copy_(torch.where(now, torch.logit(mean, eps=_EPSILON), bias))
        self.started |= now


class RecentMeans(nn.Module):
    """Computes exponential moving averages of V values, with a memory of about 100,000 examples.

    Its state is in the module's state dict.

    Args:
        values: V.
    """

    total_V: Tensor
    count: Tensor

    def __init__(self, values: int) -> None:
        super().__init__()
        # float64: a batch's addition to a float32 sum of 100,000 small probabilities would lose digits.
        self.register_buffer("total_V", torch.zeros(values, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self) -> Tensor:
        """Returns the means (V,); zeros before the first example."""
        return torch.where(self.count > 0, self.total_V / self.count, 0.0)

    @torch.no_grad()
    def sums(self, values_VB: Tensor, seen_B: Tensor) -> Tensor:
        """Returns the sums (V + 1,) of values and number, of the examples that ``seen_B`` marks or weighs.

        The sums of several processes' examples, added up, are those of all their examples.

        Args:
            values_VB: (V, B).
            seen_B: (B,), bool or weights.
        """
        added = seen_B.sum(dtype=torch.float64)
        return torch.cat([(values_VB * seen_B).sum(dim=1, dtype=torch.float64), added.unsqueeze(0)])

    @torch.no_grad()
    def add_sums(self, sums: Tensor) -> None:
        """Adds the examples of ``sums``."""
        keep = torch.exp(sums[-1] * (-1 / _RECENT))
        self.total_V.mul_(keep).add_(sums[:-1])
        self.count.mul_(keep).add_(sums[-1])

    def add(self, values_VB: Tensor, seen_B: Tensor) -> None:
        """Adds the values (V, B) of the examples (B,) that ``seen_B`` marks, or by which it weighs them."""
        self.add_sums(self.sums(values_VB, seen_B))


class Standardizer(nn.Module):
    """Subtracts a vector's recent mean and divides by its recent deviation, column by column; clips at 10 deviations.

    Mean and variance are over about the last 100,000 examples, because a stream has no fixed scale. Before the first
    example, vectors are only clipped.

    Args:
        width: E.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.moments = RecentMeans(2 * width)

    @property
    def started(self) -> Tensor:
        """Tells, as a bool scalar, whether any vector has been added."""
        return self.moments.count > 0

    def forward(self, vector_BE: Tensor) -> Tensor:
        """Standardises vectors (B, E)."""
        dtype = vector_BE.dtype
        mean_E, square_E = self.moments().chunk(2)
        # In float64: this difference loses digits where the mean is large beside the deviation.
        variance_E = square_E - mean_E.square()
        least = (_LEAST_VARIANCE * variance_E.mean()).clamp(min=torch.finfo(torch.float32).tiny)
        deviation_E = variance_E.clamp(min=least).sqrt().where(self.started, 1.0)
        standard_BE: Tensor = (vector_BE - mean_E.to(dtype)) / deviation_E.to(dtype)
        return standard_BE.clamp(-_LARGEST, _LARGEST)

    def sums(self, vector_BE: Tensor, seen_B: Tensor) -> Tensor:
        """Returns the sums (2E + 1,) of ``RecentMeans`` over the vectors (B, E) that ``seen_B`` marks or weighs."""
        vector_EB = vector_BE.double().T
        return self.moments.sums(torch.cat([vector_EB, vector_EB.square()]), seen_B)

    def add_sums(self, sums: Tensor) -> None:
        """Adds the vectors of ``sums``."""
        self.moments.add_sums(sums)

    def add(self, vector_BE: Tensor, seen_B: Tensor) -> None:
        """Adds the vectors (B, E) of the examples that ``seen_B`` marks."""
        self.add_sums(self.sums(vector_BE, seen_B))


class ValueDistillationHead(nn.Module):
    """Learns a teacher's predictions of a label that is not binary, in a head beside the serving head.

    The loss is the task head's soft loss; the gradient to the trunk is multiplied by ``beta``. Its unit is that of the
    serving head.

    Args:
        head: representation (B, R) -> outputs, (B,) or (B, K).
        task_head: says what the outputs mean; the student's own, which stays the student's.
        gradient_scale: beta.
    """

    decomposes = True
    has_started = True

    def __init__(self, head: nn.Module, task_head: TaskHead, gradient_scale: float) -> None:
        super().__init__()
        self.head = head
        # In a tuple, because a module would become a part of this module's state.
        self._task_head, self._gradient_scale = (task_head,), gradient_scale

    def sums(self, soft: Tensor, counted_B: Tensor) -> Tensor | None:
        """Returns None, because the head keeps no mean."""
        return None

    def forward(
        self,
        student: StudentOutput,
        soft: Tensor,
        hit_B: Tensor,
        weight_B: Tensor | None = None,
        sums: Tensor | None = None,
    ) -> Tensor:
        """Returns the losses (L,) of ``head_soft_loss``.

        Args:
            student: output of the student's forward pass.
            soft: soft labels, (L, B) or (L, B, C).
            hit_B: (B,) bool, marks examples that have soft labels.
            weight_B: (B,) the weight of each example; None where each weighs 1.
            sums: not read.
        """
        (task_head,) = self._task_head
        output = self.head(scale_gradient(student.representation_BR, self._gradient_scale))
        return torch.stack([head_soft_loss(task_head, output, values, hit_B, weight_B) for values in soft])


class DistillationHeads(nn.ModuleDict):
    """Holds a head for each task that a teacher teaches: a ``DistillationHead`` of a binary label.

    Args:
        tasks: the tasks.
        new_head: builds a head of the student's shape; of labels that are not binary with a number of outputs.
        label_scale: alpha, of binary labels.
        gradient_scale: beta.
        task_heads: ``StudentSpec.heads``.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        new_head: Callable[..., nn.Module],
        label_scale: float | Literal["auto"],
        gradient_scale: float,
        task_heads: Mapping[str, TaskHead] | None = None,
    ) -> None:
        super().__init__()
        for task in tasks:
            task_head = (task_heads or {}).get(task)
            # Prefixed, because torch refuses a child with the name of an attribute of ModuleDict, such as `items`.
            if task_head is None or task_head.label_kind == "binary":
                self[f"task_{task}"] = DistillationHead(new_head(), label_scale, gradient_scale)
            else:
                head = new_head(task_head.num_outputs)
                self[f"task_{task}"] = ValueDistillationHead(head, task_head, gradient_scale)

    def of_task(self, task: str) -> DistillationHead | ValueDistillationHead:
        """Returns the head of a task."""
        head = self[f"task_{task}"]
        assert isinstance(head, DistillationHead | ValueDistillationHead)
        return head

    @property
    def has_started(self) -> bool:
        """Returns whether each head has started from a batch's mean."""
        return all(head.has_started for head in self.values())

    @property
    def decomposes(self) -> bool:
        """Returns False until each head has started from a batch's mean, and with a label scale of recent means.

        A strategy that returns ``sums`` as its own, and passes those of the whole batch to the heads, asks
        ``has_started`` instead.
        """
        return all(head.decomposes for head in self.values())

    def sums(self, teacher: TeacherOutput) -> dict[str, Tensor]:
        """Returns the sums of the teacher's soft labels, by task, that heads with a label scale of recent means add."""
        sums: dict[str, Tensor] = {}
        for task in (key.removeprefix("task_") for key in self):
            if task in teacher.hit:
                hit_B, weight_B = teacher.hit[task], teacher.weight
                counted_B = hit_B if weight_B is None else hit_B * weight_B
                of_task = self.of_task(task).sums(teacher.probabilities[task], counted_B)
                if of_task is not None:
                    sums[task] = of_task
        return sums
