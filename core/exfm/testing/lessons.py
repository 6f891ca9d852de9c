"""A small student, batches that a teacher has supervised, and the losses that a transfer strategy makes of them.

Legend: B examples, I inputs of the student, R width of its representation, E width of the teacher's embedding.
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
from exfm.testing.network import check_bits, check_close

_INPUTS = 3
_WIDTH = 4
_MEANINGLESS = 9e9
_ROWS = {"items": 10, "shops": 2}
STATES = {"item": 4}
"""Width of the kit's teacher's states, by entity."""
TEACHER_TABLES = {"items": 6, "shops": 4}
"""Width of the rows of the kit's teacher's tables, by table."""


class Student(nn.Module):
    """A trunk of one layer, and a serving head for each task."""

    def __init__(self, tasks: Sequence[str], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.dtype = dtype
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.trunk = nn.Linear(_INPUTS, _WIDTH, dtype=dtype)
            self.heads = nn.ModuleList(self.new_head() for _ in tasks)
        tables = {"item": "items", "shop": "shops"}
        parts = part_specs({"items": _WIDTH, "shops": _WIDTH})
        self.spec = StudentSpec(tuple(tasks), _WIDTH, self.new_head, _WIDTH, tables, _ROWS, parts)

    def new_head(self) -> nn.Module:
        """(B, R) -> logits (B,)."""
        return nn.Sequential(nn.Linear(_WIDTH, 1, dtype=self.dtype), nn.Flatten(0))

    def forward(self, x_BI: Tensor) -> StudentOutput:
        """Maps inputs (B, I) to what strategies learn from."""
        representation_BR = self.trunk(x_BI).tanh()
        logits = [head(representation_BR) for head in self.heads]
        return StudentOutput(representation_BR, dict(zip(self.spec.tasks, logits, strict=True)))


def part_specs(widths: Mapping[str, int]) -> dict[str, PartSpec]:
    """The parts of a model with the student's tables in some widths: these, and an encoder of a sequence."""
    tables = {f"table/{table}": PartSpec({"weight": (_ROWS[table], width)}, table) for table, width in widths.items()}
    return tables | {"sequence_encoder/history": PartSpec({"layer.weight": (_WIDTH, _WIDTH), "layer.bias": (_WIDTH,)})}


@dataclass(frozen=True)
class Lesson:
    """A batch: inputs (B, I) and labels (B,) by task, the teacher's output, and its vectors (B, K) by width."""

    x_BI: Tensor
    teacher: TeacherOutput
    labels: Mapping[str, Tensor]
    vectors: Mapping[int, Tensor]

    @property
    def size(self) -> int:
        """B."""
        return self.x_BI.shape[0]

    def take(self, rows: Sequence[int]) -> Lesson:
        """The examples at these places, in this order."""
        return self._map(lambda tensor: tensor[torch.tensor(rows, dtype=torch.long)])

    def with_hits(self, hit: Mapping[str, Tensor]) -> Lesson:
        """Only these tasks are taught, and with these hits."""
        given = self.teacher
        soft = {task: given.probabilities[task] for task in hit}
        return replace(self, teacher=TeacherOutput(soft, hit, given.embedding))

    def of_misses(self) -> Lesson:
        """Of no example there is any teacher output."""
        return self.with_hits({task: torch.zeros_like(hit) for task, hit in self.teacher.hit.items()})

    def with_other_misses(self) -> Lesson:
        """Other values where they have no meaning."""
        given = self.teacher
        soft = {task: torch.where(given.hit[task], value, _MEANINGLESS) for task, value in given.probabilities.items()}
        seen_B = torch.stack(list(given.hit.values())).any(dim=0)
        embedding = None if given.embedding is None else given.embedding.where(seen_B.unsqueeze(1), _MEANINGLESS)
        return replace(self, teacher=TeacherOutput(soft, given.hit, embedding))

    def as_leaves(self) -> Lesson:
        """The same teacher output, such that gradients could reach it."""

        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().clone().requires_grad_()

        given = self.teacher
        soft = {task: leaf(value) for task, value in given.probabilities.items()}
        embedding = None if given.embedding is None else leaf(given.embedding)
        return replace(self, teacher=TeacherOutput(soft, given.hit, embedding))

    def tensors(self) -> dict[str, Tensor]:
        """All of its tensors but the inputs, by what they are."""
        found = {f"probabilities of {task}": value for task, value in self.teacher.probabilities.items()}
        found |= {f"hits of {task}": value for task, value in self.teacher.hit.items()}
        found |= {f"labels of {task}": value for task, value in self.labels.items()}
        found |= {f"teacher vectors of width {width}": value for width, value in self.vectors.items()}
        return found if self.teacher.embedding is None else {**found, "embedding": self.teacher.embedding}

    def _map(self, of_each: Callable[[Tensor], Tensor]) -> Lesson:
        given = self.teacher
        soft = {task: of_each(value) for task, value in given.probabilities.items()}
        hit = {task: of_each(value) for task, value in given.hit.items()}
        embedding = None if given.embedding is None else of_each(given.embedding)
        labels = {task: of_each(value) for task, value in self.labels.items()}
        vectors = {width: of_each(value) for width, value in self.vectors.items()}
        return Lesson(of_each(self.x_BI), TeacherOutput(soft, hit, embedding), labels, vectors)


def random_lesson(
    tasks: Sequence[str], size: int, embedding_dim: int | None, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Lesson:
    """A batch in which each task has misses, and the fourth example is a miss of all."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    soft, hit, labels = {}, {}, {}
    for place, task in enumerate(tasks):
        soft[task], labels[task] = normal(size).sigmoid(), (normal(size) > 0).to(dtype)
        hit[task] = torch.arange(size) % 4 != place % 3
        hit[task][3:4] = False
    embedding_BE = None if embedding_dim is None else normal(size, embedding_dim)
    x_BI = normal(size, _INPUTS)
    vectors = {width: normal(size, width) for width in sorted({*STATES.values(), *TEACHER_TABLES.values()})}
    return Lesson(x_BI, TeacherOutput(soft, hit, embedding_BE), labels, vectors)


def losses(strategy: Any, student: Student, lesson: Lesson) -> dict[str, Tensor]:
    """Computes its losses; it keeps nothing of the batch, because a copy of it computes them."""
    return losses_in_place(deepcopy(strategy), student(lesson.x_BI), lesson)


def outcome(strategy: Any, student: Student, lesson: Lesson) -> dict[str, Tensor]:
    """Its losses, their gradients, and what its state would be afterwards, each by what it is."""
    strategy = deepcopy(strategy)
    leaves = {f"the student's {name}": parameter for name, parameter in student.named_parameters()}
    leaves |= {f"its {name}": parameter for name, parameter in strategy.named_parameters()}
    found = {}
    for loss_name, loss in losses_in_place(strategy, student(lesson.x_BI), lesson).items():
        found[loss_name] = loss.detach()
        for name, gradient in zip(leaves, gradients(loss, leaves.values()), strict=True):
            found[f"{loss_name}'s gradient of {name}"] = gradient
    return found | {f"its {name} afterwards": value.detach() for name, value in strategy.state_dict().items()}


def gradients(loss: Tensor, leaves: Iterable[Tensor]) -> list[Tensor]:
    """The gradient of each; zeros where the loss does not depend on it."""
    leaves = list(leaves)
    if not loss.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    return [gradient.clone(memory_format=torch.contiguous_format) for gradient in found]


def check_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], how: str) -> None:
    """Raises AssertionError unless two outcomes are equal bit for bit."""
    for what, value in expected.items():
        check_bits(actual[what].reshape(-1), value.reshape(-1), f"{what}, {how}")


def check_near(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], how: str) -> None:
    """Raises AssertionError unless two outcomes are equal but for float64 rounding."""
    for what, value in expected.items():
        check_close(actual[what], value, f"{what}, {how}")


def losses_in_place(strategy: Any, output: StudentOutput, lesson: Lesson) -> dict[str, Tensor]:
    """Computes an adapter's loss, the loss, and a scalar of each table's offsets, as the core does in a step."""
    found = {}
    if isinstance(strategy, LabelAdapter):
        found["its adapter's loss"] = strategy.adapter_loss(lesson.teacher, lesson.labels)
    if isinstance(strategy, DistillationStrategy):
        found["the loss"] = strategy.loss(output, lesson.teacher, lesson.labels)
    for number, add in enumerate(additions_of(strategy)):
        found[f"offset {number}, of {add.table}"] = add.projection(lesson.vectors[width_of(add)]).square().sum()
    return found


def additions_of(strategy: Any) -> list[AddRows]:
    """Lists the rows that a strategy adds."""
    transfers = strategy.transfers() if isinstance(strategy, ParameterStrategy) else []
    return [one for one in transfers if isinstance(one, AddRows)]


def width_of(add: AddRows) -> int:
    """Returns the width K of the vectors that a projection reads of the kit's teacher."""
    source = add.sources[0]
    return STATES["item"] if source.kind == "state" else TEACHER_TABLES[source.name]
