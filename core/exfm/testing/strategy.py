"""The strategy under test: how the kit builds it, and the batches that it learns from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from exfm.interfaces.component import Component
from exfm.interfaces.distillation_strategy import DistillationStrategy
from exfm.interfaces.transfer_specs import TeacherSpec
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.testing.component import ComponentTests
from exfm.testing.lessons import STATES, TEACHER_TABLES, Lesson, Student, part_specs, random_lesson, with_sums

_EMBEDDING_DIM = 5


class StrategyTests(ComponentTests):
    """Base of the tests of a transfer strategy.

    ``configs`` leave ``teacher`` out. The student has the tables ``items`` and ``shops`` in width 4 and an encoder of
    the sequence ``history``; so has its teacher, but ``items`` in width 6. The teacher stores what the strategy
    requires.

    Attributes:
        tasks: of student and teacher, at least two.
    """

    interface: ClassVar[type[Component]] = TransferStrategy
    tasks: ClassVar[tuple[str, ...]] = ("click", "buy")

    def config(self, fields: Mapping[str, Any]) -> Any:
        """The Config of fields as written in YAML, and of a teacher."""
        return super().config({"teacher": "fm", **fields})

    def teacher(self, tasks: Sequence[str]) -> TeacherSpec:
        """Describes the teacher."""
        requires = self.component.requires
        states = STATES if "states" in requires else {}
        parts = part_specs(TEACHER_TABLES) if "parameters" in requires else {}
        return TeacherSpec("fm", tuple(tasks), self._embedding_dim, states, parts)

    def make(
        self, fields: Mapping[str, Any], student: Student, *, seed: int = 0, teacher: TeacherSpec | None = None
    ) -> Any:
        """The strategy, built under a seed, in the student's precision, before it has seen a batch."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            strategy = self.component(self.config(fields), student.spec, teacher or self.teacher(self.tasks))
        return strategy.to(student.dtype)

    def make_used(self, fields: Mapping[str, Any], student: Student) -> Any:
        """The strategy after a batch."""
        strategy, lesson = self.make(fields, student), self.lesson(seed=1, dtype=student.dtype)
        if isinstance(strategy, DistillationStrategy):
            output = student(lesson.x_BI)
            strategy.loss(output, with_sums(strategy, output, lesson.teacher), lesson.labels)
        return strategy

    def lesson(self, size: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Lesson:
        """A random batch, some of it misses."""
        return random_lesson(self.tasks, size, self._embedding_dim, seed=seed, dtype=dtype)

    @property
    def _embedding_dim(self) -> int | None:
        return _EMBEDDING_DIM if "embedding" in self.component.requires else None
