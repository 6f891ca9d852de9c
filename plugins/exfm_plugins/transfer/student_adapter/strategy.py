"""ExFM's student adapter as an exfm transfer strategy.

Legend: B examples, L soft labels of an example, C numbers that an adapter reads beside the teacher's prediction, D
width of a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, rms_norm

from exfm import DistillationStrategy, TaskHead
from exfm.components import suggestion
from exfm.layers import DistillationHeads, batch_mean, mlp
from exfm.schema import LABEL_KINDS
from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec, TransferConfig

_EPSILON = 1e-6
_DAY_S = 86_400

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class StudentAdapter(DistillationStrategy):
    """A small MLP corrects the teacher with fresh labels; the student learns the corrected label (arXiv 2502.17494).

    The teacher that labels an example is older than the example. For each taught task, with ``p_F`` the teacher's
    probability, ``y`` the label, ``sg`` a stopped gradient and ``z_D`` the logit of a distillation head::

        z_A = logit(p_F) + MLP(x, c), or MLP(x)             x = logit(p_F), or p_F
        adapter:  mean over hits of bce(z_A, y)             a separate Adam steps the MLP, and nothing else does
        student:  w * mean(bce(z_D, min(alpha * sg(sigmoid(z_A)), 1)))

    In each batch the adapter steps first. It follows a drift of the labels faster than the teacher does, which theorem
    3.2 bounds. The gradient from ``z_D`` to the trunk is multiplied by ``beta``; the serving head sees labels alone.

    Of ``p_F`` alone the MLP can learn only a curve: a bias that depends on the domain, the item or the age of the label
    is beyond it. ``c`` is what it sees beside ``p_F``: with ``features``, the student's tokens of these features, such
    as that of the domain, each divided by its root mean square; with ``age``, ``log(1 + a) / log(1 + day)``, where
    ``a`` is how old the teacher was. The tokens are data: no gradient of the adapter reaches the student's tables.

    Which head learns the corrected label is not published. ``head: own`` gives it a separate head, beside those of an
    ``auxiliary_head`` in the same list. ``head: shared`` contains the auxiliary head: the head learns both labels, and
    ``w_F * mean(bce(z_D, min(alpha * p_F, 1)))`` is added.

    Not published either, so ours:

    - ``c``, which is empty by default;
    - the MLP adds to the teacher's logit and its last layer starts at zero, so that the corrected label starts as the
      teacher's (``adds: false`` is the published ``z_A = MLP(p_F)``); ``p_F`` is clipped to 1e-6 from 0 and 1. Without
      hidden layers it is Platt's scaling;
    - a label that is not binary is corrected in the outputs of its task head ``h``: the inverse of its prediction takes
      the place of the logit, ``z_A = h^-1(p_F) + MLP(h^-1(p_F), c)``, the adapter's loss is ``h``'s on the label, and
      the student's is ``h``'s against the corrected prediction. Heads without an inverse are refused;
    - a task whose labels come late has no fresh labels here: its corrected label stays the teacher's;
    - the start of the heads, and ``label_scale: auto``, as in ``auxiliary_head``: by the mean of ``p_F`` where the head
      is shared and else of the corrected label.

    Args:
        config: see ``Config``.
        student: the student's tasks and the builder of its heads.
        teacher: the teacher's name and tasks.

    Raises:
        ValueError: there is no task to teach, a head has no inverse, a field is for binary labels alone, the student
            has no such feature, or the teacher's output has no age.
    """

    name: ClassVar[str] = "student_adapter"
    label_kinds = LABEL_KINDS

    class Config(TransferConfig):
        """Fields of `student_adapter`. The paper publishes neither the MLP's size nor its learning rate."""

        head: Literal["own", "shared"] = Field(
            "own",
            description="The head of the corrected label: separate, or shared with the teacher's label.",
        )
        weight: Weight = Field(1.0, description="w: weight of the corrected label's loss.")
        teacher_weight: Weight | None = Field(
            None, description="w_F: weight of the teacher's own label on a shared head, where it is 1 by default."
        )
        label_scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] | Literal["auto"] = Field(
            1.0, description="Alpha: multiplies soft labels, clipped at 1; auto as in auxiliary_head."
        )
        gradient_scale: float = Field(
            1.0, ge=0, allow_inf_nan=False, description="Beta: multiplies the gradient from head to trunk."
        )
        input: Literal["logit", "probability"] = Field(
            "logit", description="The input of the adapter's MLP: the teacher's probability, or its logit."
        )
        adds: bool = Field(
            True, description="The MLP adds to the teacher's logit; false: it replaces it, as published."
        )
        features: tuple[str, ...] = Field(
            (), description="Features of the student whose tokens the adapter's MLP reads too: ids, such as the domain."
        )
        age: bool = Field(False, description="Whether the adapter's MLP reads how old the teacher was, too.")
        hidden: tuple[PositiveInt, ...] = Field(
            (16,), description="Widths of the adapter's hidden layers; may be none."
        )
        lr: float = Field(1e-3, gt=0, allow_inf_nan=False, description="Learning rate of the adapter's Adam.")

        @model_validator(mode="after")
        def _teacher_needs_a_shared_head(self) -> StudentAdapter.Config:
            if self.head == "own" and self.teacher_weight is not None:
                raise ValueError(
                    f"teacher_weight: {self.teacher_weight} needs head: shared; with head: own, put an auxiliary_head "
                    "beside the student_adapter"
                )
            return self

    def __init__(self, config: Config, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        self._lr, self._shared = config.lr, config.head == "shared"
        self.reads_features, self.reads_age = config.features, config.age
        _check_seen(config, student, teacher)
        # In a mapping, because a module would become a part of the strategy's state.
        self._task_heads = {task: head for task, head in student.heads.items() if head.label_kind != "binary"}
        self._check_heads(config, student)
        self.heads = DistillationHeads(
            self.tasks, student.new_head, config.label_scale, config.gradient_scale, student.heads
        )
        # In the order of a head's soft labels.
        teacher_weight = 1.0 if config.teacher_weight is None else config.teacher_weight
        self._weights = (teacher_weight, config.weight) if self._shared else (config.weight,)
        seen = len(config.features) * student.embedding_dim + config.age
        self.adapters = nn.ModuleDict()
        for task in self.tasks:
            task_head = self._task_heads.get(task)
            self.adapters[f"task_{task}"] = _Adapter(config.input, config.hidden, config.adds, seen, task_head)

    def _check_heads(self, config: Config, student: StudentSpec) -> None:
        """Raises ValueError where the adapter is not defined for the head of a task."""
        for task in self.tasks:
            for field, default in (("label_scale", 1), ("input", "logit")):
                value = getattr(config, field)
                if value != default:
                    self.check_kind(student.label(task), ("binary",), f"{self.name}: {field}: {value}")
            task_head = self._task_heads.get(task)
            if task_head is not None and not task_head.invertible:
                raise ValueError(
                    f"{self.name}: the task {task} has the head {task_head.name}, whose outputs a prediction does not "
                    "decide: there is nothing that an adapter could correct. Give the task another head, such as the "
                    "default, or teach it by auxiliary_head"
                )

    def adapter_optimizer(self) -> torch.optim.Optimizer:
        """Returns an Adam of the adapters alone."""
        return torch.optim.Adam(self.adapters.parameters(), lr=self._lr)

    def adapter_loss(self, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns ``mean(bce(z_A, y))``, or that of the head's loss, over a task's hits, summed over such tasks."""
        terms = []
        for task in self.tasks:
            hit_B = teacher.hit.get(task)
            if task in labels and hit_B is not None and hit_B.any():
                logit_B = self._corrected(task, teacher, hit_B)
                label_B = labels[task][hit_B].to(logit_B.dtype)
                if task in self._task_heads:
                    loss_B = self._task_heads[task].loss(logit_B, label_B)
                    weight_B = None if teacher.weight is None else teacher.weight[hit_B]
                    terms.append(batch_mean(loss_B, torch.ones_like(loss_B), weight_B))
                elif teacher.weight is None:
                    terms.append(binary_cross_entropy_with_logits(logit_B, label_B))
                else:
                    loss_B = binary_cross_entropy_with_logits(logit_B, label_B, reduction="none")
                    terms.append(batch_mean(loss_B, torch.ones_like(loss_B), teacher.weight[hit_B]))
        # Without a term no parameter gets a gradient, not even zeros: Adam would move on them by its momentum.
        return torch.stack(terms).sum() if terms else torch.zeros((), requires_grad=True)

    @torch.no_grad()
    def adapt(self, teacher: TeacherOutput) -> TeacherOutput:
        """Returns the teacher's output with ``sigmoid(z_A)`` (B,), or the prediction of ``z_A``, for each task."""
        taught = [task for task in self.tasks if task in teacher.hit]
        return replace(teacher, probabilities={task: self._adapted(task, teacher) for task in taught})

    @property
    def decomposes(self) -> bool:
        """Tells whether the heads' losses do: not before each has started from a batch's mean.

        Nor with a recent mean of corrected labels, because they are known only after the adapter's step.
        """
        return self.heads.has_started if self._shared else self.heads.decomposes

    def sums(self, student: StudentOutput, teacher: TeacherOutput) -> dict[str, Tensor]:
        """Returns the sums of the teacher's probabilities by task, for ``label_scale: auto`` of shared heads."""
        return self.heads.sums(teacher) if self._shared else {}

    def loss(self, student: StudentOutput, teacher: TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        """Returns the weighted losses of the tasks' soft labels, summed, a scalar; a miss counts 0 in a mean."""
        terms = [self._distillation(task, student, teacher) for task in self.tasks if task in teacher.hit]
        return torch.stack(terms).sum()

    def _adapted(self, task: str, teacher: TeacherOutput) -> Tensor:
        corrected = self._corrected(task, teacher, slice(None))
        predicted = self._task_heads[task].predict(corrected) if task in self._task_heads else corrected.sigmoid()
        return predicted.to(teacher.probabilities[task].dtype)

    def _corrected(self, task: str, teacher: TeacherOutput, rows: Tensor | slice) -> Tensor:
        """Returns ``z_A``, (B,) or (B, K), of the batch's rows that a mask or a slice selects."""
        seen: list[Tensor] = []
        for feature in self.reads_features:
            token_BD = teacher.tokens[feature][rows]
            # Scaled, because rows of a table start near zero.
            seen.append(rms_norm(token_BD, token_BD.shape[1:]))
        if self.reads_age:
            assert teacher.age_s is not None  # checked with the teacher
            seen.append(torch.log1p(teacher.age_s[rows]).unsqueeze(1) / math.log1p(_DAY_S))
        corrected: Tensor = self.adapters[f"task_{task}"](teacher.probabilities[task][rows], seen)
        return corrected

    def _distillation(self, task: str, student: StudentOutput, teacher: TeacherOutput) -> Tensor:
        hit_B, teacher_B = teacher.hit[task], teacher.probabilities[task]
        with torch.no_grad():
            adapted_B = self._adapted(task, teacher)
        soft_LB = torch.stack([teacher_B, adapted_B] if self._shared else [adapted_B])
        losses: Tensor = self.heads.of_task(task)(student, soft_LB, hit_B, teacher.weight, teacher.sums.get(task))
        return torch.stack([weight * loss for weight, loss in zip(self._weights, losses, strict=True)]).sum()


def _check_seen(config: StudentAdapter.Config, student: StudentSpec, teacher: TeacherSpec) -> None:
    """Raises ValueError where the student has no such feature, or the teacher's output has no age."""
    for feature in config.features:
        if feature not in student.tables:
            raise ValueError(
                f"student_adapter: features: the student reads no feature {feature!r} of ids; "
                f"it reads {', '.join(student.tables)}.{suggestion(feature, student.tables)}"
            )
    if config.age and not teacher.has_age:
        raise ValueError(
            f"student_adapter: age: true, but the files of teacher {teacher.name!r} have no times: allowed is false"
        )


class _Adapter(nn.Module):
    """Maps a teacher's predictions, and ``seen`` further numbers of each example, to corrected outputs, (B,) or (B, K).

    Args:
        task_head: of a label that is not binary.
    """

    def __init__(
        self,
        read: Literal["logit", "probability"],
        hidden: tuple[int, ...],
        adds: bool,
        seen: int,
        task_head: TaskHead | None,
    ) -> None:
        super().__init__()
        self._read, self._adds, self._task_head = read, adds, (task_head,)
        outputs = 1 if task_head is None else task_head.num_outputs
        self.correction = mlp([outputs + seen, *hidden, outputs], "silu")
        if adds:
            last = self.correction[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, teacher_B: Tensor, seen: Sequence[Tensor] = ()) -> Tensor:
        dtype = next(self.parameters()).dtype
        # Detached, because the adapter's step is its own: a gradient to a token would update a table of the student.
        seen_BC = [values_BC.detach().to(dtype) for values_BC in seen]
        (task_head,) = self._task_head
        if task_head is not None:
            output = task_head.output_of(teacher_B.detach().to(dtype)).to(dtype)
            columns = output.unsqueeze(1) if output.dim() == 1 else output
            correction: Tensor = self.correction(torch.cat([columns, *seen_BC], dim=1)).view_as(output)
            return output + correction if self._adds else correction
        teacher_B = teacher_B.detach().to(dtype).clamp(_EPSILON, 1 - _EPSILON)
        logit_B = teacher_B.logit()
        read_B = logit_B if self._read == "logit" else teacher_B
        output_B: Tensor = self.correction(torch.cat([read_B.unsqueeze(1), *seen_BC], dim=1)).squeeze(1)
        return logit_B + output_B if self._adds else output_B
