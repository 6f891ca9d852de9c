"""Declares TransferStrategy, the base of the two kinds of transfer: by a loss, and by parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.network import Network
from exfm.interfaces.schema import Label, LabelKind
from exfm.interfaces.transfer_specs import StudentSpec, TeacherSpec

TeacherData = Literal["embedding", "states", "parameters"]
"""Names the data that a strategy may require of its teacher beside predictions."""


class TransferConfig(ComponentConfig):
    """Holds the fields of every transfer strategy's Config: each transfer has a teacher."""

    teacher: str = Field(description="Whose supervision is learned from: a name under `models` or `teachers`.")
    fallback: tuple[str, ...] = Field(
        (), description="Further teachers, asked in turn about an example of which those before have no row."
    )
    tasks: dict[str, str] = Field(
        default_factory=dict,
        description="The student's tasks that are taught, each with the teacher's task; by default equal names.",
    )

    @property
    def teachers(self) -> tuple[str, ...]:
        """Returns the teacher, and the teachers that are asked where it has no row."""
        return (self.teacher, *self.fallback)


class TransferStrategy(Network):
    """Transfers a teacher's knowledge to a student while it trains. Nothing of it is left in the served model.

    A component extends one of the two kinds: ``DistillationStrategy`` adds a loss, ``ParameterStrategy`` takes
    parameters. A strategy may own parameters; they are trained with the student.

    Attributes:
        requires: the data that the teacher has to store or to have, beside its predictions.
        label_kinds: the kinds of label that it can teach; a task of another kind is refused.
        tasks: the student's tasks that the teacher teaches. Teacher output comes under their names.
        teacher_tasks: the teacher's name for each of them.
        reads_age: whether a loss reads ``TeacherOutput.age_s``; set it before the end of the constructor.
        reads_features: the student's features, among ``StudentSpec.tables``, whose ``TeacherOutput.tokens`` a loss
            reads; set it before the end of the constructor.

    Raises:
        ValueError: there are no such tasks, or the teacher lacks required data.
    """

    kind: ClassVar[str] = "transfer_strategy"
    requires: ClassVar[frozenset[TeacherData]] = frozenset()
    label_kinds: ClassVar[frozenset[LabelKind]] = frozenset({"binary"})
    _extends_a_kind: ClassVar[bool] = False
    Config: ClassVar[type[ComponentConfig]] = TransferConfig
    config: TransferConfig
    tasks: tuple[str, ...]
    teacher_tasks: dict[str, str]
    reads_age: bool = False
    reads_features: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.Config, TransferConfig):
            raise TypeError(f"{cls.__qualname__}.Config must be a subclass of exfm.transfer.TransferConfig")
        if hasattr(cls, "name") and not cls._extends_a_kind:
            raise TypeError(
                f"{cls.__qualname__} must extend exfm.DistillationStrategy, which adds a loss, or "
                "exfm.ParameterStrategy, which takes parameters, and not exfm.TransferStrategy itself"
            )

    def __init__(self, config: TransferConfig, student: StudentSpec, teacher: TeacherSpec) -> None:
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
        self._check_labels(student, teacher)
        self._check_teacher(teacher)

    def _check_labels(self, student: StudentSpec, teacher: TeacherSpec) -> None:
        """Raises ValueError where a task's label is of a kind that is not taught, or another kind for the teacher."""
        for task, teacher_task in self.teacher_tasks.items():
            label, other = student.label(task), teacher.labels.get(teacher_task, Label(name=teacher_task))
            if (label.kind, label.classes) != (other.kind, other.classes):
                raise ValueError(
                    f"{self.name}: the student's {task} is {_kind_words(label)}, and {teacher.name!r} predicts "
                    f"{teacher_task} as {_kind_words(other)}: both must be equal; name other tasks under tasks"
                )
            self.check_kind(label, self.label_kinds)

    def check_kind(self, label: Label, allowed: Collection[str], why: str = "") -> None:
        """Raises ValueError where a label that is taught is of another kind than those allowed.

        Args:
            why: says what allows no other kinds, such as a field of the Config; the strategy itself by default.
        """
        if label.kind not in allowed:
            others = [task for task in self.tasks if task != label.name]
            hint = f"name the others under tasks, such as {{{others[0]}: {others[0]}}}" if others else "leave it out"
            raise ValueError(
                f"{why or self.name}: the task {label.name} has a {label.kind} label, and it is defined for "
                f"{', '.join(sorted(allowed))} labels alone; {hint}"
            )

    def _check_teacher(self, teacher: TeacherSpec) -> None:
        """Raises ValueError where the teacher does not store what the strategy requires."""
        if "embedding" in self.requires and teacher.embedding_dim is None:
            raise ValueError(
                f"{self.name}: teacher {teacher.name!r} stores no embeddings; set "
                f"models.{teacher.name}.supervision.embedding to float16 or int8"
            )
        if "states" in self.requires and not teacher.states:
            raise ValueError(
                f"{self.name}: {teacher.name!r} stores no states; say which it shall under "
                f"models.{teacher.name}.supervision.states, such as {{user_id: [user_id, history]}}"
            )


def _kind_words(label: Label) -> str:
    """Names the kind of a label, with the number of its classes."""
    return label.kind if label.classes is None else f"{label.kind} of {label.classes} classes"
