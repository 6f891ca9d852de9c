"""Builds a small student and batches that a teacher has supervised, and computes a strategy's losses of them.

Legend: B examples, I inputs of the student, R width of its representation, E width of the teacher's embedding, D width
of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from exfm.interfaces.distillation_strategy import DistillationStrategy, LabelAdapter, StudentOutput, TeacherOutput
from exfm.interfaces.parameter_strategy import AddRows, ParameterStrategy
from exfm.interfaces.transfer_specs import PartSpec, StudentSpec
from exfm.mappings import add_prefix, map_values
from exfm.testing.network import check_bits, check_close

_INPUTS = 3
_WIDTH = 4
_MEANINGLESS = 9e9
_ROWS = {"items": 10, "shops": 2}
STATES = {"item": 4}
"""Widths of the states of the test kit's teacher, by entity."""
STUDENT_TABLES = {"item": "items", "shop": "shops"}
"""The table that each feature of the test kit's student reads."""
TEACHER_TABLES = {"items": 6, "shops": 4}
"""Widths of the rows of the test kit's teacher, by table."""


class Student(nn.Module):
    """Predicts tasks by a trunk of a single layer, and a serving head for each task."""

    def __init__(self, tasks: Sequence[str], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.dtype = dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.trunk = nn.Linear(_INPUTS, _WIDTH, dtype=dtype)
            self.heads = nn.ModuleList(self.new_head() for _ in tasks)
        parts = part_specs({"items": _WIDTH, "shops": _WIDTH})
        self.spec = StudentSpec(tuple(tasks), _WIDTH, self.new_head, _WIDTH, STUDENT_TABLES, _ROWS, parts)

    def new_head(self) -> nn.Module:
        """Builds a head: (B, R) -> logits (B,)."""
        return nn.Sequential(nn.Linear(_WIDTH, 1, dtype=self.dtype), nn.Flatten(0))

    def forward(self, x_BI: Tensor) -> StudentOutput:
        """Maps inputs (B, I) to the output that strategies learn from."""
        representation_BR = self.trunk(x_BI).tanh()
        logits = [head(representation_BR) for head in self.heads]
        return StudentOutput(representation_BR, dict(zip(self.spec.tasks, logits, strict=True)))


def part_specs(widths: Mapping[str, int]) -> dict[str, PartSpec]:
    """Describes the parts of a model with the student's tables in some widths, and an encoder of a sequence."""
    tables = {f"table/{table}": PartSpec({"weight": (_ROWS[table], width)}, table) for table, width in widths.items()}
    return tables | {"sequence_encoder/history": PartSpec({"layer.weight": (_WIDTH, _WIDTH), "layer.bias": (_WIDTH,)})}


@dataclass(frozen=True)
class Lesson:
    """Holds a batch: inputs (B, I), labels (B,) by task, the teacher's output, and its vectors (B, K) by width."""

    x_BI: Tensor
    teacher: TeacherOutput
    labels: Mapping[str, Tensor]
    vectors: Mapping[int, Tensor]

    @property
    def size(self) -> int:
        """Returns B."""
        return self.x_BI.shape[0]

    def take(self, rows: Sequence[int]) -> Lesson:
        """Selects the examples at these positions, in this order."""
        return self._map(lambda tensor: tensor[torch.tensor(rows, dtype=torch.long)])

    def with_hits(self, hit: Mapping[str, Tensor]) -> Lesson:
        """Returns the batch with teacher output of these tasks only, and with these hits."""
        teacher = self.teacher
        soft = {task: teacher.probabilities[task] for task in hit}
        return replace(self, teacher=replace(teacher, probabilities=soft, hit=hit))

    def without_hits(self) -> Lesson:
        """Returns the batch without teacher output of any example."""
        return self.with_hits(map_values(torch.zeros_like, self.teacher.hit))

    def with_other_misses(self) -> Lesson:
        """Returns the batch with other teacher output at misses, where it has no meaning."""
        teacher = self.teacher
        soft: dict[str, Tensor] = {}
        for task, value in teacher.probabilities.items():
            soft[task] = torch.where(teacher.hit[task], value, _MEANINGLESS)
        seen_B = torch.stack(list(teacher.hit.values())).any(dim=0)
        embedding, age_s = teacher.embedding, teacher.age_s
        if embedding is not None:
            embedding = embedding.where(seen_B.unsqueeze(1), _MEANINGLESS)
        if age_s is not None:
            age_s = age_s.where(seen_B, _MEANINGLESS)
        return replace(self, teacher=replace(teacher, probabilities=soft, embedding=embedding, age_s=age_s))

    def with_sums(self, sums: Mapping[str, Tensor]) -> Lesson:
        """Returns the batch as rows of a larger batch, over which a strategy's sums are these."""
        return replace(self, teacher=replace(self.teacher, sums=sums))

    def as_leaves(self) -> Lesson:
        """Returns the batch with teacher output that gradients could reach."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().clone().requires_grad_(tensor.is_floating_point())

        return replace(self, teacher=_map_output(self.teacher, leaf))

    def tensors(self) -> dict[str, Tensor]:
        """Returns all tensors but the inputs, by description."""
        tensors = add_prefix("probabilities of ", self.teacher.probabilities)
        tensors |= add_prefix("hits of ", self.teacher.hit)
        tensors |= add_prefix("labels of ", self.labels)
        tensors |= add_prefix("teacher vectors of width ", self.vectors)
        if self.teacher.embedding is not None:
            tensors["embedding"] = self.teacher.embedding
        if self.teacher.age_s is not None:
            tensors["age"] = self.teacher.age_s
        tensors |= add_prefix("tokens of ", self.teacher.tokens)
        return tensors

    def _map(self, change: Callable[[Tensor], Tensor]) -> Lesson:
        """Applies a function to every tensor."""
        labels = map_values(change, self.labels)
        vectors = map_values(change, self.vectors)
        return Lesson(change(self.x_BI), _map_output(self.teacher, change), labels, vectors)


def _map_output(teacher: TeacherOutput, change: Callable[[Tensor], Tensor]) -> TeacherOutput:
    """Applies a function to every tensor of a teacher's output."""
    return TeacherOutput(
        map_values(change, teacher.probabilities),
        map_values(change, teacher.hit),
        None if teacher.embedding is None else change(teacher.embedding),
        None if teacher.age_s is None else change(teacher.age_s),
        map_values(change, teacher.tokens),
        None if teacher.weight is None else change(teacher.weight),
    )


def random_lesson(
    tasks: Sequence[str], size: int, embedding_dim: int | None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Lesson:
    """Draws a batch in which each task has misses, and the fourth example is a miss of all tasks."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    soft, hit, labels = {}, {}, {}
    for position, task in enumerate(tasks):
        soft[task], labels[task] = normal(size).sigmoid(), (normal(size) > 0).to(dtype)
        hit[task] = torch.arange(size) % 4 != position % 3
        hit[task][3:4] = False
    embedding_BE = None if embedding_dim is None else normal(size, embedding_dim)
    x_BI = normal(size, _INPUTS)
    vectors = {width: normal(size, width) for width in sorted({*STATES.values(), *TEACHER_TABLES.values()})}
    # Drawn last, so that all else is as it would be without them.
    age_s = normal(size).exp() * 3600
    tokens = {feature: normal(size, _WIDTH) for feature in STUDENT_TABLES}
    return Lesson(x_BI, TeacherOutput(soft, hit, embedding_BE, age_s, tokens), labels, vectors)


def losses(strategy: Any, student: Student, lesson: Lesson) -> dict[str, Tensor]:
    """Computes a strategy's losses on a copy, so that the strategy keeps nothing of the batch."""
    return losses_in_place(deepcopy(strategy), student(lesson.x_BI), lesson)


def outcome(strategy: Any, student: Student, lesson: Lesson) -> dict[str, Tensor]:
    """Returns a strategy's losses, their gradients, and its state after the batch, each by description."""
    strategy = deepcopy(strategy)
    leaves = {f"the student's {name}": parameter for name, parameter in student.named_parameters()}
    leaves |= {f"its {name}": parameter for name, parameter in strategy.named_parameters()}
    tensors: dict[str, Tensor] = {}
    for loss_name, loss in losses_in_place(strategy, student(lesson.x_BI), lesson).items():
        tensors[loss_name] = loss.detach()
        for name, gradient in zip(leaves, gradients(loss, leaves.values()), strict=True):
            tensors[f"{loss_name}'s gradient of {name}"] = gradient
    return tensors | {f"its {name} afterwards": value.detach() for name, value in strategy.state_dict().items()}


def gradients(loss: Tensor, leaves: Iterable[Tensor]) -> list[Tensor]:
    """Returns the gradient of each leaf; zeros where the loss does not depend on the leaf."""
    leaves = list(leaves)
    if not loss.requires_grad:
        return list(map(torch.zeros_like, leaves))
    computed = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [gradient.clone(memory_format=torch.contiguous_format) for gradient in computed]


def check_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], how: str) -> None:
    """Raises AssertionError unless two outcomes are equal bit for bit."""
    for name, value in expected.items():
        check_bits(actual[name].reshape(-1), value.reshape(-1), f"{name}, {how}")


def check_near(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], how: str) -> None:
    """Raises AssertionError unless two outcomes are equal but for float64 rounding."""
    for name, value in expected.items():
        check_close(actual[name], value, f"{name}, {how}")


def losses_in_place(strategy: Any, output: StudentOutput, lesson: Lesson) -> dict[str, Tensor]:
    """Computes an adapter's loss, the loss, and a scalar of each table's offsets, as the core does in a step."""
    computed: dict[str, Tensor] = {}
    teacher = with_sums(strategy, output, _declared(strategy, lesson.teacher))
    if isinstance(strategy, LabelAdapter):
        computed["its adapter's loss"] = strategy.adapter_loss(teacher, lesson.labels)
    if isinstance(strategy, DistillationStrategy):
        computed["the loss"] = strategy.loss(output, teacher, lesson.labels)
    for number, add in enumerate(additions_of(strategy)):
        computed[f"offset {number}, of {add.table}"] = add.projection(lesson.vectors[width_of(add)]).square().sum()
    return computed


def sums_of(strategy: DistillationStrategy, output: StudentOutput, lesson: Lesson) -> Mapping[str, Tensor]:
    """Returns the sums over a batch that a strategy's loss needs."""
    return with_sums(strategy, output, _declared(strategy, lesson.teacher)).sums


@torch.no_grad()
def with_sums(strategy: Any, output: StudentOutput, teacher: TeacherOutput) -> TeacherOutput:
    """Returns a teacher's output with the strategy's sums over it, unless it has those of a larger batch."""
    if teacher.sums or not isinstance(strategy, DistillationStrategy):
        return teacher
    return replace(teacher, sums=strategy.sums(output, teacher))


def _declared(strategy: Any, teacher: TeacherOutput) -> TeacherOutput:
    """Returns a teacher's output with the age and the tokens that the strategy says it reads, as in a run."""
    age_s = teacher.age_s if strategy.reads_age else None
    return replace(teacher, age_s=age_s, tokens={name: teacher.tokens[name] for name in strategy.reads_features})


def additions_of(strategy: Any) -> list[AddRows]:
    """Lists the rows that a strategy adds."""
    transfers = strategy.transfers() if isinstance(strategy, ParameterStrategy) else []
    return [transfer for transfer in transfers if isinstance(transfer, AddRows)]


def width_of(add: AddRows) -> int:
    """Returns the width K of the vectors that a projection reads from the test kit's teacher."""
    source = add.sources[0]
    return STATES["item"] if source.kind == "state" else TEACHER_TABLES[source.name]
