"""Tests that hold for every strategy that takes parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch

from exfm.interfaces.component import Component
from exfm.interfaces.parameter_strategy import ParameterStrategy
from exfm.testing.lessons import Student, additions_of, outcome, width_of
from exfm.testing.network import check_close
from exfm.testing.strategy_effects import StrategyEffectTests
from exfm.transfer.declared_transfers import check_copied_once, declared_transfers


class ParameterStrategyTests(StrategyEffectTests):
    """Tests of a strategy that takes parameters; see ``exfm.testing`` for how to use them.

    ``configs`` leave ``teacher`` out, and name parts, tables and entities of the kit: student and teacher have the
    tables ``items`` and ``shops`` and an encoder of the sequence ``history``; the teacher has states of ``item``.

    Attributes:
        tasks: of student and teacher, at least two.
    """

    interface: ClassVar[type[Component]] = ParameterStrategy

    def test_transfers_fit_student_and_teacher(self, fields: Mapping[str, Any]) -> None:
        """Parts, tables and sources exist and fit, and the teacher is required to have them."""
        student = Student(self.tasks)
        declared = declared_transfers(self.make(fields, student), student.spec, self.teacher(self.tasks))
        check_copied_once([declared])
        assert declared.copies or declared.additions, "transfers() declares none"
        kinds = {source.kind for add in declared.additions for source in add.sources}
        used = {"states": "state" in kinds, "parameters": "table_row" in kinds or bool(declared.copies)}
        spare = [data for data, is_used in used.items() if data in self.component.requires and not is_used]
        assert not spare, f"`requires` says {spare[0]!r}, which no transfer uses"

    def test_projections_map_each_vector_by_itself(self, fields: Mapping[str, Any]) -> None:
        """A row is looked up beside others in training, and beside all of its table where it is published."""
        student, lesson = Student(self.tasks), self.lesson()
        for add in self._additions(fields, student):
            vector_BK = lesson.vectors[width_of(add)]
            alone = torch.cat([add.projection(vector_BK[row : row + 1]) for row in range(len(vector_BK))])
            check_close(alone, add.projection(vector_BK), f"what is added to {add.table}, alone and beside other rows")

    def test_what_is_added_is_finite(self, fields: Mapping[str, Any]) -> None:
        """Projects zeros, which is a row's vector before the teacher's first."""
        student = Student(self.tasks)
        for add in self._additions(fields, student):
            added_RD = add.projection(torch.zeros(3, width_of(add), dtype=student.dtype))
            assert added_RD.isfinite().all(), f"what is added to {add.table} is not finite where there is no vector yet"

    def test_every_projection_learns(self, fields: Mapping[str, Any]) -> None:
        """Checks that a gradient reaches every parameter through the added rows; another would stay as it is."""
        student = Student(self.tasks)
        strategy = self.make(fields, student)
        with torch.no_grad():
            for parameter in strategy.parameters():
                parameter += 0.1  # a layer of zeros stops the gradient of the layers before it
        gradients = outcome(strategy, student, self.lesson())
        reached = {name.partition("gradient of its ")[2] for name, value in gradients.items() if value.any()}
        still = [name for name, _ in strategy.named_parameters() if name not in reached]
        assert not still, f"no gradient reaches its {', '.join(still)}"

    def _additions(self, fields: Mapping[str, Any], student: Student) -> list[Any]:
        additions = additions_of(self.make(fields, student))
        if not additions:
            pytest.skip(f"{self.component.__qualname__} adds no rows with this config")
        return additions
