"""TransferStrategy: what a student learns from a teacher's supervision."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from exfm.errors import suggestion
from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.network import Network
from exfm.interfaces.packed_rows import packed_rows
from exfm.interfaces.table_offset import TableOffset

Parts = Mapping[str, Mapping[str, Tensor]]
"""The tensors of some of a model's named parts: by part, and by name in it."""


@dataclass(frozen=True)
class PartShape:
    """What is known of a named part of a model.

    Attributes:
        tensors: the shapes of its tensors, by name in it.
        table: the table that it is, whose one tensor is its ``weight`` (rows, width); None of another part.
        reads: the features it reads, where its weights depend on their order.
    """

    tensors: Mapping[str, tuple[int, ...]]
    table: str | None = None
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudentShape:
    """What is known of the student when a strategy is built.

    Attributes:
        tasks: the student's tasks.
        representation_dim: width R of its backbone's output.
        new_head: makes another head of the serving head's shape, (B, R) -> logits (B,).
        embedding_dim: width D of its tables' rows.
        tables: the table that each of its categorical features reads, by feature.
        table_rows: rows of each table, by table.
        parts: its named parts.
    """

    tasks: tuple[str, ...]
    representation_dim: int
    new_head: Callable[[], nn.Module]
    embedding_dim: int = 0
    tables: Mapping[str, str] = field(default_factory=dict)
    table_rows: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, PartShape] = field(default_factory=dict)

    def part(self, name: str) -> PartShape:
        """One of its parts.

        Raises:
            ValueError: there is none of this name.
        """
        return _find(name, self.parts, "the student")


@dataclass(frozen=True)
class TeacherShape:
    """What is known of the teacher when a strategy is built.

    Attributes:
        name: as the experiment calls it.
        tasks: those it gives probabilities for.
        embedding_dim: width E of the embeddings it gives; None where it gives none. A strategy that needs them raises
            ValueError then.
        states: width K of the states it gives, by entity, a categorical feature.
        parts: its named parts, where a strategy of the experiment reads any of its parts; none of a teacher from
            elsewhere.
    """

    name: str
    tasks: tuple[str, ...]
    embedding_dim: int | None = None
    states: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, PartShape] = field(default_factory=dict)

    def part(self, name: str) -> PartShape:
        """One of its parts.

        Raises:
            ValueError: there is none of this name.
        """
        return _find(name, self.parts, f"teacher {self.name!r}")


def _find(name: str, parts: Mapping[str, PartShape], whose: str) -> PartShape:
    if not parts:
        raise ValueError(f"{whose} has no part {name!r}: a teacher from elsewhere has none that could be read")
    if name not in parts:
        raise ValueError(f"{whose} has no part {name!r}.{suggestion(name, parts)}")
    return parts[name]


@dataclass(frozen=True)
class StudentOutput:
    """One forward pass of the student: representation (B, R), serving logits (B,) by task, states (B, K) by entity."""

    representation_BR: Tensor
    logits: Mapping[str, Tensor]
    states: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Supervision:
    """One teacher's supervision, row by row of the student's batch.

    Attributes:
        probabilities: (B,) by task. Where ``hit`` is false the value is meaningless (and finite).
        hit: (B,) bool by task, whether the teacher has supervised the example: it had seen the example, and labels of
            the task before it. A miss is a mask, never a zero.
        embedding: (B, E) float32, the teacher's representation as it is stored; zeros where no task is hit. None where
            the teacher gives none.
    """

    probabilities: Mapping[str, Tensor]
    hit: Mapping[str, Tensor]
    embedding: Tensor | None = None


@dataclass(frozen=True)
class EntityStates:
    """What a teacher knew of entities at successive examples, oldest first.

    Attributes:
        row: (S,) int64, the table row of each example's entity.
        state_SK: (S, K) float32, its state then, made before the teacher had trained on the example.
    """

    row: Tensor
    state_SK: Tensor

    def newest(self) -> EntityStates:
        """The last of each row."""
        row, last = _last_of_each(self.row)
        return EntityStates(row, self.state_SK.index_select(0, last))


@dataclass(frozen=True)
class TableRows:
    """Rows of a teacher's table that it has trained since, oldest first.

    Attributes:
        row: (S,) int64, which rows; one may come more than once.
        weight_SE: (S, E) float32, each as it was after training.
    """

    row: Tensor
    weight_SE: Tensor

    def newest(self) -> TableRows:
        """The last of each row."""
        row, last = _last_of_each(self.row)
        return TableRows(row, self.weight_SE.index_select(0, last))


@dataclass(frozen=True)
class Recent:
    """What a teacher had made of a batch's ids by the time of each example, where that is newer than what was told.

    Attributes:
        known_V: (V,) bool, whether there is anything newer, for each of a feature's ids in the batch.
        vector_VK: (V, K) float32, the newest state or table row before the example; meaningless where none is.
    """

    known_V: Tensor
    vector_VK: Tensor

    def over(self, told_VK: Tensor) -> Tensor:
        """The newest of each id: of what was told, and this."""
        return torch.where(self.known_V.unsqueeze(1), self.vector_VK.to(told_VK.dtype), told_VK)


def _last_of_each(row: Tensor) -> tuple[Tensor, Tensor]:
    """The different values, and where each comes last: torch keeps any of the values that are written to one row."""
    key, bits = packed_rows(row)
    last = torch.from_numpy(key[np.diff(key >> bits, append=-1) != 0])
    return last >> bits, last & ((1 << bits) - 1)


class TransferConfig(ComponentConfig):
    """Base of a transfer strategy's Config: every transfer has a teacher."""

    teacher: str = Field(description="Whose supervision is learned from: a name under `models` or `teachers`.")
    fallback: tuple[str, ...] = Field(
        (), description="Further teachers, asked in turn about an example of which those before have no row."
    )
    tasks: dict[str, str] = Field(
        default_factory=dict,
        description="The student's tasks that are taught, each with the teacher's task; by default those of one name.",
    )

    @property
    def teachers(self) -> tuple[str, ...]:
        """The teacher, and those that are asked where it has no row."""
        return (self.teacher, *self.fallback)


class TransferStrategy(Network):
    """Adds what a teacher knows to a student's training. Nothing of it is left in the served model.

    A strategy may own parameters (heads, adapters); they are trained with the student, but for those that it trains
    itself by ``own_loss``. With several teachers, it is told of one that knows what they know together.

    Attributes:
        reads_states: whether ``observe`` is to be told of the states of the teacher (the first of several).
        reads_parts: whether ``refresh`` is to be told of parts of the teacher (the first of several).
        tasks: the student's tasks that the teacher teaches. Supervision comes under their names.

    Raises:
        ValueError: there are none, or the teacher lacks what the strategy needs.
    """

    kind: ClassVar[str] = "transfer_strategy"
    reads_states: ClassVar[bool] = False
    reads_parts: ClassVar[bool] = False
    Config: ClassVar[type[ComponentConfig]] = TransferConfig
    config: TransferConfig
    tasks: tuple[str, ...]
    teacher_tasks: dict[str, str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.Config, TransferConfig):
            raise TypeError(f"{cls.__qualname__}.Config must be a subclass of exfm.TransferConfig")

    def __init__(self, config: TransferConfig, student: StudentShape, teacher: TeacherShape) -> None:
        nn.Module.__init__(self)
        self.config = config
        mapping = config.tasks or {task: task for task in student.tasks if task in teacher.tasks}
        strange = [task for task in mapping if task not in student.tasks]
        strange += [task for task in mapping.values() if task not in teacher.tasks]
        if strange or not mapping:
            problem = f"there is no task {strange[0]!r}" if strange else "they share no task"
            raise ValueError(
                f"{self.name}: student and teacher {teacher.name!r}: {problem}: "
                f"the student has {', '.join(student.tasks)}, the teacher {', '.join(teacher.tasks)}"
            )
        self.tasks = tuple(task for task in student.tasks if task in mapping)
        self.teacher_tasks = mapping

    def own_optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer of parameters that ``own_loss`` trains and the student's optimizer leaves alone, if any.

        Called once, after the strategy has been placed; its state is saved and restored with the student's.
        """
        return None

    def own_loss(self, supervision: Supervision, labels: Mapping[str, Tensor]) -> Tensor:
        """What ``own_optimizer`` minimises, a scalar; each batch steps it before the student's step.

        Args:
            supervision: the teacher's, aligned with the batch.
            labels: (B,) of 0 and 1 of the tasks whose labels are known by now.
        """
        raise NotImplementedError(f"{self.name} has an optimizer of its own and no own_loss")

    def table_offsets(self) -> Mapping[str, TableOffset]:
        """What is added to the rows of the student's tables, by table.

        While the student trains, each lookup adds it; in what is published and served it is folded into the table, so
        that the served model is neither larger nor slower. A lookup for a feature of the batch also gives the feature's
        name, as the second argument, so that the module can tell whose ``recall`` the rows belong to.
        """
        return {}

    def observe(self, states: Mapping[str, EntityStates]) -> None:
        """Told of the teacher's states, by entity, of all its examples so far that it has not been told of.

        Called between chunks of the stream: of an example that the student still has to predict it is not told.
        """

    def recall(self, recent: Mapping[str, Recent]) -> None:
        """Told before each batch, by feature, of what is newer for its ids than what it was told by the others.

        For each example that is the newest state, or row, of the teacher's examples before it, of this batch's too. It
        holds until it is told again; after a chunk's last batch, it is told that there is nothing newer.
        """

    def teacher_parts(self) -> tuple[str, ...]:
        """Names of the teacher's parts that the next ``refresh`` is to be told of; only these are read."""
        return ()

    def frozen_parts(self) -> tuple[str, ...]:
        """Names of the student's parts that training leaves as they are; asked for once, when the student is built."""
        return ()

    def refresh(self, parts: Parts) -> Parts:
        """Told before each window of the teacher's parts; returns what to write into the student's.

        The parts are those of the newest snapshot that the teacher's delay allows, on the CPU. As a window starts with
        them also after an interruption, what a strategy only keeps of them need not be in its state. Before the
        teacher's first snapshot nothing is told.
        """
        return {}

    def follow(self, rows: Mapping[str, TableRows]) -> None:
        """Told, by part, of rows of the teacher's tables that have changed since, where it stores any.

        Called between chunks of a window, for a strategy that reads parts: of rows that have learned from an example
        that the student still has to predict it is not told.
        """

    def corrected(self, supervision: Supervision) -> Mapping[str, Tensor]:
        """The teacher's probabilities (B,) as it would correct them before they are learned, by task, for the report.

        Asked for before the batch's labels have been learned from. Nothing where they are learned as they are.
        """
        return {}

    @abstractmethod
    def loss(self, student: StudentOutput, supervision: Supervision, labels: Mapping[str, Tensor]) -> Tensor:
        """The term this strategy adds to the student's loss, a scalar: the mean over the batch, a miss counting 0.

        Args:
            student: the forward pass that is being trained, with gradients.
            supervision: the teacher's, aligned with the batch.
            labels: (B,) of 0 and 1 by task.
        """
