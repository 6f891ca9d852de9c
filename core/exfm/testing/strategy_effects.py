"""Tests that a transfer strategy has no side effects, and that names and labels do not decide its result."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from exfm.testing.lessons import Student, check_same, losses_in_place, outcome
from exfm.testing.names import renamings, with_names
from exfm.testing.operations import Elsewhere, Operations, plain_tensors
from exfm.testing.side_effects import noticed, settings_checked
from exfm.testing.strategy import StrategyTests
from exfm.transfer.declared_transfers import declared_transfers

_HINT = "make tensors with device=x.device, or by x.new_zeros and the like"


class StrategyEffectTests(StrategyTests):
    """Tests the effects of a strategy on its surroundings."""

    def test_names_do_not_decide(self, fields: Mapping[str, Any]) -> None:
        """Renames tasks: names must not change the built strategy, because a set's order differs in each process."""
        names, expected = self._names_and_values(fields)
        for ending, renamed in renamings(self.tasks):
            tests = copy(self)
            vars(tests)["tasks"] = tuple(renamed.values())
            try:
                others, values = tests._names_and_values(with_names(fields, renamed))
            except Exception as error:
                pytest.skip(f"it wants tasks of certain names: {type(error).__name__}: {error}")
            others = [name.replace(ending, "") for name in others]
            why = "where tasks have other names; go through self.tasks in order, never through a set"
            assert others == names, f"its parameters are {', '.join(others)} and not {', '.join(names)} {why}"
            check_same(values, expected, why)

    def _names_and_values(self, fields: Mapping[str, Any]) -> tuple[list[str], dict[str, Tensor]]:
        student = Student(self.tasks)
        strategy = self.make(fields, student)
        values = outcome(strategy, student, self.lesson())
        return list(strategy.state_dict()), {str(number): value for number, value in enumerate(values.values())}

    def test_the_seed_is_the_runs(self, fields: Mapping[str, Any]) -> None:
        """Checks the generator: a strategy that seeds it takes the run's seed from all modules built after it."""
        student = Student(self.tasks)
        with noticed("manual_seed") as seeded, torch.random.fork_rng(devices=[]):
            after = []
            for seed in (0, 1):
                torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
                self.component(self.config(fields), student.spec, self.teacher(self.tasks))
                after.append(torch.get_rng_state())
        assert not seeded, "its constructor calls torch.manual_seed; draw from torch's generator as it is"
        assert not torch.equal(*after), "after its constructor, torch's random numbers no longer depend on the seed"

    def test_settings_of_the_process_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """Checks threads, default type and the like, which are the run's: setting them changes all models."""
        student = Student(self.tasks)
        with settings_checked(self.component):
            outcome(self.make(fields, student), student, self.lesson())

    def test_a_batch_leaves_nothing_behind(self, fields: Mapping[str, Any]) -> None:
        """Looks for tensors of a finished batch: its output or graph takes memory beside the next batch's."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        with Operations() as operations:
            losses_in_place(strategy, student(lesson.x_BI), lesson)
        lasting = [*student.state_dict().values(), *strategy.parameters(), *strategy.buffers()]
        lasting += [lesson.x_BI, *lesson.tensors().values()]
        if operations.left(lasting):
            gc.collect()
        left = operations.left(lasting)
        assert not left, f"of a batch that is over, the result of {left[0]} is still in memory; what lasts is a buffer"

    def test_runs_on_the_students_device(self, fields: Mapping[str, Any]) -> None:
        """Looks for tensors on the CPU: on an accelerator an operation of tensors on two devices fails."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, output = self.make_used(fields, student), student(lesson.x_BI)
        plain = list(plain_tensors(self.make(fields, student)))
        assert not plain, f"{plain[0]} stays where it was made; register_buffer(..., persistent=False) lets it move"
        with Elsewhere() as elsewhere:
            losses = losses_in_place(strategy, output, lesson).values()
        mixed = "is given a tensor on the CPU and one on the student's device"
        assert not elsewhere.met, f"{elsewhere.met[0]} {mixed}; {_HINT}"
        staying = any(map(elsewhere.stays, losses))
        assert not staying, f"a loss is on the CPU wherever the student is; {_HINT}"

    def test_tasks_of_other_names(self, fields: Mapping[str, Any]) -> None:
        """Renames the teacher's tasks by ``tasks``; teacher output comes under the student's names."""
        student, lesson = Student(self.tasks), self.lesson()
        mapping = {task: f"teacher_{task}" for task in self.tasks}
        plain = self.make({**fields, "tasks": {}}, student)
        renamed = self.make({**fields, "tasks": mapping}, student, teacher=self.teacher([*mapping.values()]))
        actual, expected = (outcome(strategy, student, lesson) for strategy in (renamed, plain))
        check_same(actual, expected, "where the teacher's tasks have names of their own")
        last = self.tasks[-1]
        single = self.make({**fields, "tasks": {last: "other"}}, student, teacher=self.teacher(["other"]))
        partial = lesson.with_hits({last: lesson.teacher.hit[last]})
        check_finite(outcome(single, student, partial), f"where {last!r} alone is taught")

    def test_nothing_is_left_in_the_student(self, fields: Mapping[str, Any]) -> None:
        """Compares the served student with and without a strategy: the same modules, hooks and values."""
        student, lesson = Student(self.tasks), self.lesson()
        before = deepcopy(student)
        strategy = self.make_used(fields, student)
        outcome(strategy, student, lesson)
        served = set(map(id, student.parameters()))
        shared = [parameter for parameter in strategy.parameters() if id(parameter) in served]
        assert not shared, "it holds parameters of the student; new_head() makes heads of its own"
        left = [name for name, _ in student.named_modules() if name not in dict(before.named_modules())]
        assert not left, f"it left {', '.join(left)} in the student"
        for name, module in student.named_modules():
            hooks = (
                module._forward_pre_hooks,
                module._forward_hooks,
                module._backward_pre_hooks,
                module._backward_hooks,
            )
            assert not any(hooks), f"it left a hook on the student's {name or 'whole'}"
        check_same(student.state_dict(), before.state_dict(), "of the student, with a strategy and without")
        actual, expected = (model(lesson.x_BI).logits for model in (student, before))
        check_same(actual, expected, "served with a strategy and without")

    def test_runs_repeat(self, fields: Mapping[str, Any]) -> None:
        """Builds twice from a seed: all random numbers are drawn at construction, and training mode changes nothing."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        expected = outcome(strategy.train(), student, lesson)
        check_same(outcome(self.make_used(fields, student), student, lesson), expected, "built again under one seed")
        check_same(outcome(strategy.eval(), student, lesson), expected, "in training and in evaluation mode")

    def test_saved_state_is_the_whole_state(self, fields: Mapping[str, Any]) -> None:
        """Restores ``state_dict()``, written without pickle: a run that stopped goes on to the same bits."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, other = self.make_used(fields, student), self.make(fields, student, seed=1)
        other.load_state_dict(load(save(strategy.state_dict())))
        actual, expected = (outcome(model, student, lesson) for model in (other, strategy))
        check_same(actual, expected, "of state loaded into a strategy of another seed")

    def test_builds_without_memory(self, fields: Mapping[str, Any]) -> None:
        """Builds the strategy on the meta device, where tensors have no values, as ``exfm validate`` does."""
        with torch.device("meta"):
            strategy = self.component(self.config(fields), Student(self.tasks).spec, self.teacher(self.tasks))
        real = [name for name, value in strategy.state_dict().items() if not value.is_meta]
        assert not real, f"built on the meta device, {', '.join(real)} took memory; leave the device to torch's default"

    def test_a_teacher_without_required_data_is_refused(self, fields: Mapping[str, Any]) -> None:
        """Refuses a teacher without required data, which is stored on request, before anything is trained."""
        requires = self.component.requires
        if not requires:
            pytest.skip(f"{self.component.__qualname__} requires nothing beside predictions")
        student, teacher = Student(self.tasks), self.teacher(self.tasks)
        lacking = {
            "embedding": (replace(teacher, embedding_dim=None), r"models\.fm\.supervision\.embedding"),
            "states": (replace(teacher, states={}), r"models\.fm\.supervision\.states"),
            "parameters": (replace(teacher, parts={}), "has no part"),
        }
        for data in sorted(requires):
            without, words = lacking[data]
            with pytest.raises(ValueError, match=words):
                declared_transfers(self.make(fields, student, teacher=without), student.spec, without)


def check_finite(computed: Mapping[str, Tensor], case: str) -> None:
    """Raises AssertionError unless all of an outcome is finite."""
    wrong = [name for name, value in computed.items() if not value.isfinite().all()]
    assert not wrong, f"{case}, not finite: {', '.join(wrong)}"
