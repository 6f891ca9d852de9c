"""The strategy under test: how the kit builds it, and the batches that it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from exfm.interfaces.component import Component
from exfm.interfaces.transfer_strategy import Parts, TeacherShape, TransferStrategy
from exfm.testing.component import ComponentTests
from exfm.testing.lessons import Lesson, Student, part_shapes, random_lesson, random_parts


class StrategyTests(ComponentTests):
    """Base of the tests of a transfer strategy. Its attributes are those of ``TransferStrategyTests``."""

    interface: ClassVar[type[Component]] = TransferStrategy
    tasks: ClassVar[tuple[str, ...]] = ("click", "buy")
    needs_embedding: ClassVar[bool] = False
    teaches_serving_heads: ClassVar[bool] = False
    teaches_trunk: ClassVar[bool] = True

    def config(self, fields: Mapping[str, Any]) -> Any:
        """The Config of fields as written in YAML, and of a teacher."""
        return super().config({"teacher": "fm", **fields})

    def teacher(self, tasks: Sequence[str]) -> TeacherShape:
        """What the strategy is told of its teacher."""
        states = {"item": 4} if self.component.reads_states else {}
        parts = part_shapes({"items": 6, "shops": 4}) if self.component.reads_parts else {}
        return TeacherShape("fm", tuple(tasks), self._embedding_dim, states, parts)

    def make(
        self, fields: Mapping[str, Any], student: Student, *, seed: int = 0, teacher: TeacherShape | None = None
    ) -> Any:
        """The strategy, built under a seed, in the student's precision, before it has seen a batch."""
        strategy = self._build(fields, student, seed, teacher)
        self._tell(strategy, seed=0)
        return strategy

    def _build(self, fields: Mapping[str, Any], student: Student, seed: int, teacher: TeacherShape | None) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            strategy = self.component(self.config(fields), student.shape, teacher or self.teacher(self.tasks))
        return strategy.to(student.dtype)

    def _tell(self, strategy: Any, seed: int) -> tuple[Parts, Parts]:
        """Begins a window: tells a strategy of the parts it asks for; returns these, and what it made of them."""
        names = strategy.teacher_parts() if self.component.reads_parts else ()
        parts = random_parts(self.teacher(self.tasks).parts, names, seed)
        return parts, strategy.refresh(parts) if parts else {}

    def make_used(self, fields: Mapping[str, Any], student: Student) -> Any:
        """The strategy after a batch."""
        strategy, lesson = self.make(fields, student), self.lesson(seed=1, dtype=student.dtype)
        strategy.loss(student(lesson.x_BI), lesson.supervision, lesson.labels)
        return strategy

    def lesson(self, size: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Lesson:
        """A random batch, some of it misses."""
        return random_lesson(self.tasks, size, self._embedding_dim, seed=seed, dtype=dtype)

    @property
    def _embedding_dim(self) -> int | None:
        return 5 if self.needs_embedding else None
