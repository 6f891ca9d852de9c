"""What a transfer strategy must leave as it is, and what names and labels must not decide."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from exfm.testing.lessons import Lesson, Student, check_same, outcome
from exfm.testing.names import renamings, with_names
from exfm.testing.operations import Elsewhere, Operations, plain_tensors
from exfm.testing.side_effects import noticed, settings_checked
from exfm.testing.strategy import StrategyTests

_HINT = "make tensors with device=x.device, or by x.new_zeros and the like"


class StrategyEffectTests(StrategyTests):
    """Tests of a strategy's surroundings."""

    def test_names_do_not_decide(self, fields: Mapping[str, Any]) -> None:
        """What tasks are called must not change what is built: in a set, names have an order in each process anew."""
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
        """A strategy that seeds torch's generator itself takes the run's seed from all that is built after it."""
        student = Student(self.tasks)
        with noticed("manual_seed") as seeded, torch.random.fork_rng(devices=[]):
            after = []
            for seed in (0, 1):
                torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
                self.component(self.config(fields), student.shape, self.teacher(self.tasks))
                after.append(torch.get_rng_state())
        assert not seeded, "its constructor calls torch.manual_seed; draw from torch's generator as it is"
        assert not torch.equal(*after), "after its constructor, torch's random numbers no longer depend on the seed"

    def test_settings_of_the_process_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """Threads, default type and the like are the run's: a strategy that sets them changes all models."""
        student = Student(self.tasks)
        with settings_checked(self.component):
            outcome(self.make(fields, student), student, self.lesson())

    def test_a_batch_leaves_nothing_behind(self, fields: Mapping[str, Any]) -> None:
        """What is kept of a batch outside the state, its output or its graph, takes memory beside the next one's."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        with Operations() as operations:
            strategy.loss(student(lesson.x_BI), lesson.supervision, lesson.labels)
            if strategy.own_optimizer() is not None:
                strategy.own_loss(lesson.supervision, lesson.labels)
        lasting = [*student.state_dict().values(), *strategy.parameters(), *strategy.buffers()]
        lasting += [lesson.x_BI, *lesson.tensors().values()]
        if operations.left(lasting):
            gc.collect()
        left = operations.left(lasting)
        assert not left, f"of a batch that is over, the result of {left[0]} is still in memory; what lasts is a buffer"

    def test_runs_on_the_students_device(self, fields: Mapping[str, Any]) -> None:
        """On an accelerator, a tensor that is made on the CPU meets others that are not, and the step fails."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, output = self.make_used(fields, student), student(lesson.x_BI)
        plain = list(plain_tensors(self._build(fields, student, 0, None)))
        assert not plain, f"{plain[0]} stays where it was made; register_buffer(..., persistent=False) lets it move"
        with Elsewhere() as elsewhere:
            losses = [strategy.loss(output, lesson.supervision, lesson.labels)]
            if strategy.own_optimizer() is not None:
                losses.append(strategy.own_loss(lesson.supervision, lesson.labels))
        mixed = "is given a tensor on the CPU and one on the student's device"
        assert not elsewhere.met, f"{elsewhere.met[0]} {mixed}; {_HINT}"
        staying = any(elsewhere.stays(loss) for loss in losses)
        assert not staying, f"a loss is on the CPU wherever the student is; {_HINT}"

    def test_labels_are_learned_by_a_step_alone(self, fields: Mapping[str, Any]) -> None:
        """What is made of a teacher must not hold this very batch's labels: it would seem better than it is.

        Labels reach it by a step of the optimizer; a loss that was only computed leaves nothing of them.
        """
        student, lesson = Student(self.tasks), self.lesson()
        other = replace(lesson, labels={task: 1 - label_B for task, label_B in lesson.labels.items()})
        used = self.make_used(fields, student)
        taught, corrected = zip(
            *(self._after(used, student, learned, lesson) for learned in (lesson, other)), strict=True
        )
        why = "of a batch depends on the labels that own_loss has been given of it, before any step"
        assert torch.equal(*taught), f"the loss {why}"
        for task, soft_B in corrected[0].items():
            same = torch.equal(soft_B, corrected[1][task])
            assert same, f"corrected() of {task!r} depends on labels that its losses have been given, before any step"

    def _after(
        self, used: Any, student: Student, learned: Lesson, lesson: Lesson
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a lesson, and what is corrected in it, after losses have been computed with some labels."""
        strategy, output = deepcopy(used), student(lesson.x_BI)
        if strategy.own_optimizer() is not None:
            strategy.own_loss(learned.supervision, learned.labels)
        loss = deepcopy(strategy).loss(output, lesson.supervision, lesson.labels)
        strategy.loss(output, learned.supervision, learned.labels)
        return loss.detach(), strategy.corrected(lesson.supervision)
