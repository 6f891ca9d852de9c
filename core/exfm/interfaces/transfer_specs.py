"""Describes student and teacher to a transfer strategy when it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from exfm.errors import suggestion
from exfm.interfaces.schema import Label
from exfm.interfaces.task_head import TaskHead


@dataclass(frozen=True)
class PartSpec:
    """Describes a named part of a model.

    Attributes:
        tensors: the shapes of its tensors, by name in it.
        table: the table's name, for a table, whose only tensor is its ``weight`` (rows, width); else None.
        reads: the features it reads, where its weights depend on their order.
    """

    tensors: Mapping[str, tuple[int, ...]]
    table: str | None = None
    reads: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudentSpec:
    """Describes the student.

    Attributes:
        tasks: the student's tasks.
        representation_dim: width R of its backbone's output.
        new_head: builds another head of the serving head's shape, (B, R) -> logits (B,); ``new_head(K)`` one with K
            outputs, (B, R) -> (B, K).
        embedding_dim: width D of its tables' rows.
        tables: the table that each of its categorical features reads, by feature.
        table_rows: rows of each table, by table.
        parts: its parts, by name.
        heads: what the outputs of a task's serving head mean, by task; a task without an entry has a binary label, with
            a logit as its output. They are the student's own: a strategy keeps them in a mapping, not as modules.
    """

    tasks: tuple[str, ...]
    representation_dim: int
    new_head: Callable[..., nn.Module]
    embedding_dim: int = 0
    tables: Mapping[str, str] = field(default_factory=dict)
    table_rows: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, PartSpec] = field(default_factory=dict)
    heads: Mapping[str, TaskHead] = field(default_factory=dict)

    def label(self, task: str) -> Label:
        """Returns the label of a task."""
        return self.heads[task].label if task in self.heads else Label(name=task)

    def part(self, name: str) -> PartSpec:
        """Returns a part by name.

        Raises:
            ValueError: there is no part of this name.
        """
        return _find(name, self.parts, "the student")


@dataclass(frozen=True)
class TeacherSpec:
    """Describes the teacher.

    Attributes:
        name: its name in the experiment.
        tasks: the tasks that it predicts.
        embedding_dim: width E of the embeddings it stores; None where it stores none.
        states: width K of the states it stores, by entity, a categorical feature.
        parts: its named parts, where a strategy of the experiment requires any of its parameters; none of a teacher
            from elsewhere.
        has_age: whether its output has ages; that of a teacher from elsewhere has none.
        labels: the labels of its tasks, by task; a task without an entry has a binary label.
    """

    name: str
    tasks: tuple[str, ...]
    embedding_dim: int | None = None
    states: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, PartSpec] = field(default_factory=dict)
    has_age: bool = True
    labels: Mapping[str, Label] = field(default_factory=dict)

    def part(self, name: str) -> PartSpec:
        """Returns a part by name.

        Raises:
            ValueError: there is no part of this name.
        """
        return _find(name, self.parts, f"teacher {self.name!r}")


def _find(name: str, parts: Mapping[str, PartSpec], whose: str) -> PartSpec:
    if not parts:
        raise ValueError(f"{whose} has no part {name!r}: a teacher from elsewhere has none that could be read")
    if name not in parts:
        raise ValueError(f"{whose} has no part {name!r}.{suggestion(name, parts)}")
    return parts[name]
