"""Tests that every strategy that adds a loss must pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from exfm.interfaces.component import Component
from exfm.interfaces.distillation_strategy import DistillationStrategy, LabelAdapter
from exfm.mappings import add_prefix, map_values
from exfm.testing.lessons import Lesson, Student, check_near, check_same, gradients, losses, outcome, sums_of, with_sums
from exfm.testing.network import check_close
from exfm.testing.strategy_effects import StrategyEffectTests, check_finite
from exfm.transfer.student_transfer import parameters_of


class DistillationStrategyTests(StrategyEffectTests):
    """Tests a strategy that adds a loss; see ``exfm.testing`` for how to use the tests.

    ``configs`` leave ``teacher`` out. A strategy under test has already seen a batch, unless a test says otherwise. The
    teacher stores embeddings if the strategy requires them.

    Attributes:
        tasks: of student and teacher, at least two.
        teaches_serving_heads: whether its loss means to reach the serving heads.
        teaches_trunk: whether its loss means to reach the student's representation.
    """

    interface: ClassVar[type[Component]] = DistillationStrategy
    teaches_serving_heads: ClassVar[bool] = False
    teaches_trunk: ClassVar[bool] = True

    def test_loss_is_a_finite_scalar(self, fields: Mapping[str, Any]) -> None:
        """Checks the loss, which is added to the student's from the first batch on, of few examples too."""
        for dtype in (torch.float32, torch.float64):
            student = Student(self.tasks, dtype)
            for strategy in (self.make(fields, student), self.make_used(fields, student)):
                for size in (8, 1, 0):
                    computed = outcome(strategy, student, self.lesson(size, dtype=dtype))
                    loss = computed["the loss"]
                    assert loss.shape == (), f"the loss is {tuple(loss.shape)} and not a scalar"
                    assert loss.dtype == dtype, f"student and strategy are {dtype}, the loss is {loss.dtype}"
                    check_finite(computed, f"of {size} examples")

    def test_missing_labels_and_tasks_are_left_out(self, fields: Mapping[str, Any]) -> None:
        """Leaves out labels, and teacher output of a task: labels may come late, and a teacher may lack a task."""
        student, lesson, first = Student(self.tasks), self.lesson(), self.tasks[0]
        strategy = self.make_used(fields, student)
        lessons = {
            "without labels": replace(lesson, labels={}),
            f"with labels of {first!r} alone": replace(lesson, labels={first: lesson.labels[first]}),
            f"with teacher output of {first!r} alone": lesson.with_hits({first: lesson.teacher.hit[first]}),
        }
        for case, partial in lessons.items():
            check_finite(outcome(strategy, student, partial), case)

    def test_labels_that_are_not_known_are_left_out(self, fields: Mapping[str, Any]) -> None:
        """Computes the loss where the labels of some examples, or of all, are NaN: nobody knows them yet."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        assert isinstance(strategy, DistillationStrategy)
        for unknown in (2, lesson.size):
            labels = {task: label_B.clone() for task, label_B in lesson.labels.items()}
            for label_B in labels.values():
                label_B[:unknown] = torch.nan
            output = student(lesson.x_BI)
            loss = strategy.loss(output, with_sums(strategy, output, lesson.teacher), labels)
            check_finite({"the loss": loss}, f"with {unknown} labels that are NaN")

    def test_a_miss_changes_nothing(self, fields: Mapping[str, Any]) -> None:
        """Changes the teacher's values at misses, where they have no meaning."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        actual = outcome(strategy, student, lesson.with_other_misses())
        for name, value in outcome(strategy, student, lesson).items():
            assert torch.equal(actual[name], value), f"{name} depends on the teacher's values at misses"

    def test_a_batch_of_misses_teaches_nothing(self, fields: Mapping[str, Any]) -> None:
        """Learns from misses alone, as before a teacher's first snapshot: the student then learns from labels alone."""
        student = Student(self.tasks)
        for strategy in (self.make(fields, student), self.make_used(fields, student)):
            computed = outcome(strategy, student, self.lesson().without_hits())
            wrong = [name for name, value in computed.items() if not name.endswith("afterwards") and value.any()]
            assert not wrong, f"in a batch of misses it is not zero: {', '.join(wrong)}"

    def test_loss_is_a_mean_over_the_batch(self, fields: Mapping[str, Any]) -> None:
        """Adds misses, which count 0 in the mean: the fewer hits, the less the teacher weighs beside the labels."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        few = lesson.take([0, 1, 2, 4, 5])
        with_misses = lesson.take([0, 1, 2, 4, 5, 3, 3, 3])  # the fourth is a miss of every task
        sums = [losses(strategy, student, batch)["the loss"] * batch.size for batch in (with_misses, few)]
        check_close(sums[0], sums[1], "the loss times B, with three misses more in the batch and without")

    def test_order_of_examples_does_not_matter(self, fields: Mapping[str, Any]) -> None:
        """Reverses a batch: learning must not depend on positions in it."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        turned = lesson.take(list(reversed(range(lesson.size))))
        actual, expected = (outcome(strategy, student, batch) for batch in (turned, lesson))
        check_near(actual, expected, "of the same examples in reverse order")

    def test_teacher_gets_no_gradient(self, fields: Mapping[str, Any]) -> None:
        """Checks that the teacher's output is data: the teacher is not trained with the student."""
        student, lesson = Student(self.tasks), self.lesson().as_leaves()
        leaves = [tensor for tensor in lesson.tensors().values() if tensor.requires_grad]
        for name, loss in losses(self.make_used(fields, student), student, lesson).items():
            reached = any(gradient.any() for gradient in gradients(loss, leaves))
            assert not reached, f"a gradient of {name} reaches the teacher's output; detach it"

    def test_serving_heads_are_left_to_the_labels(self, fields: Mapping[str, Any]) -> None:
        """Checks serving heads, because a gradient to them is served, the teacher's bias too, unless declared."""
        student = Student(self.tasks)
        computed = outcome(self.make_used(fields, student), student, self.lesson())
        reached = [name for name, value in computed.items() if "of the student's heads" in name and value.any()]
        if self.teaches_serving_heads:
            assert reached, "teaches_serving_heads is True, but no gradient reaches the serving heads"
        else:
            assert not reached, f"teaches_serving_heads is False, but not zero is {', '.join(reached)}"

    def test_every_part_learns(self, fields: Mapping[str, Any]) -> None:
        """Checks that a gradient reaches every parameter: another costs time and teaches nothing."""
        student = Student(self.tasks)
        strategy = self.make_used(fields, student)
        with torch.no_grad():
            for parameter in strategy.parameters():
                # A layer that is zero at initialisation stops the gradient of the layers before it.
                parameter += 0.1
        computed = outcome(strategy, student, self.lesson())
        names = [f"its {name}" for name, _ in strategy.named_parameters()]
        if self.teaches_trunk:
            names.append("the student's trunk.weight")
        still: list[str] = []
        for name in names:
            if not any(_moves(computed, loss, name) for loss in ("the loss", "its adapter's loss")):
                still.append(name)
        assert not still, f"no gradient reaches {', '.join(still)}"

    def test_adapter_optimizer_has_separate_parameters(self, fields: Mapping[str, Any]) -> None:
        """Checks that losses do not mix: the student's optimizer does not train the parameters of ``adapter_loss``."""
        student = Student(self.tasks)
        strategy, optimizer = self._with_optimizer(fields, student)
        adapted = set(map(id, parameters_of(optimizer)))
        trains = {f"its {name}": id(parameter) in adapted for name, parameter in strategy.named_parameters()}
        assert len(adapted) == sum(trains.values()), "adapter_optimizer() has parameters that are not the strategy's"
        computed = outcome(strategy, student, self.lesson())
        for name, is_adapted in trains.items():
            loss, verb = ("the loss", "trains") if is_adapted else ("its adapter's loss", "does not train")
            assert not _moves(computed, loss, name), f"{loss} reaches {name}, which adapter_optimizer() {verb}"

    def test_adapter_steps_on_labels_alone(self, fields: Mapping[str, Any]) -> None:
        """Steps on batches without labels, or of misses, which must move nothing, not even by momentum."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, optimizer = self._with_optimizer(fields, student)

        def moved(batch: Lesson) -> list[str]:
            before = deepcopy(strategy.state_dict())
            optimizer.zero_grad()
            strategy.adapter_loss(batch.teacher, batch.labels).backward()
            optimizer.step()
            return [name for name, value in strategy.state_dict().items() if not torch.equal(value, before[name])]

        assert moved(lesson), "with labels and hits, a step of adapter_optimizer() moves nothing"
        for case, batch in {"without labels": replace(lesson, labels={}), "of misses": lesson.without_hits()}.items():
            names = moved(batch)
            assert not names, f"in a batch {case}, adapter_optimizer() moves {', '.join(names)}"

    def test_inputs_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """Checks the inputs for in-place writes, because other strategies learn from the same tensors."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, output = self.make_used(fields, student), student(lesson.x_BI)
        inputs = lesson.tensors() | add_prefix("logits of ", output.logits)
        inputs["representation"] = output.representation_BR
        before = map_values(torch.clone, inputs)
        with torch.no_grad():
            strategy.loss(output, with_sums(strategy, output, lesson.teacher), lesson.labels)
            if isinstance(strategy, LabelAdapter):
                strategy.adapter_loss(lesson.teacher, lesson.labels)
        for name, tensor in inputs.items():
            assert torch.equal(tensor, before[name]), f"the {name} were changed in place"

    def test_adapted_labels_are_probabilities(self, fields: Mapping[str, Any]) -> None:
        """Checks the adapted labels, which are scored in the report and change nothing."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, _ = self._with_optimizer(fields, student)
        before = deepcopy(strategy.state_dict())
        adapted = strategy.adapt(lesson.teacher).probabilities
        for task, soft_B in adapted.items():
            hit_B = lesson.teacher.hit[task]
            assert soft_B.shape == hit_B.shape, f"of {task!r} it has {tuple(soft_B.shape)}, not {tuple(hit_B.shape)}"
            assert not soft_B.requires_grad, f"a gradient could reach the adapted labels of {task!r}; detach them"
            wrong = hit_B & ~((soft_B >= 0) & (soft_B <= 1))
            assert not wrong.any(), f"of {task!r} it has {soft_B[wrong][0].item()}, which is no probability"
        check_same(strategy.state_dict(), before, "after adapt(), and before")
        partial = lesson.with_hits({self.tasks[0]: lesson.teacher.hit[self.tasks[0]]})
        assert strategy.adapt(partial.teacher).probabilities.keys() <= {self.tasks[0]}, "it adapts what is not taught"

    def test_a_loss_that_decomposes_is_the_mean_over_any_split(self, fields: Mapping[str, Any]) -> None:
        """Splits a batch: each process may compute such a loss on its rows alone, so that rows must be independent."""
        student, lesson = Student(self.tasks), self.lesson()
        strategies = [self.make(fields, student), self.make_used(fields, student)]
        claiming = [strategy for strategy in strategies if strategy.decomposes]
        if not claiming:
            pytest.skip(f"{self.component.__qualname__}.decomposes is False: its loss gets whole batches")
        for strategy in claiming:
            sums = sums_of(strategy, student(lesson.x_BI), lesson)
            whole = outcome(strategy, student, lesson)
            halves = list(map(lesson.take, ([0, 2, 3], [1, 4, 5, 6, 7])))
            of_halves = [sums_of(strategy, student(half.x_BI), half) for half in halves]
            for name, total in sums.items():
                added = torch.stack([of_half[name] for of_half in of_halves]).sum(dim=0)
                check_close(added, total, f"its sums {name!r} of two parts of a batch, added, and of all of it")
            computed = [outcome(strategy, student, half.with_sums(sums)) for half in halves]
            shares = [half.size / lesson.size for half in halves]
            for name in whole:
                if name.startswith("the loss"):
                    terms = [share * values[name] for share, values in zip(shares, computed, strict=True)]
                    mean = torch.stack(terms).sum(dim=0)
                    check_close(
                        mean, whole[name], f"{name}, over two parts of a batch and over all of it: `decomposes`"
                    )
            # Other rows of the same batch, too, have to leave the same statistics, whatever teacher output they have.
            computed.append(outcome(strategy, student, lesson.without_hits().with_sums(sums)))
            changed = [name for name in whole if name.endswith("afterwards") and _differs(name, whole, computed)]
            assert not changed, (
                f"a batch changes {', '.join(changed)}: `decomposes` has to be False for it, or a function of `sums` "
                "has to change it alone"
            )
            if isinstance(strategy, LabelAdapter):
                self._check_adapter_decomposes(strategy, student, lesson, halves, whole)

    def _check_adapter_decomposes(
        self, strategy: Any, student: Student, lesson: Lesson, halves: Sequence[Lesson], whole: Mapping[str, Tensor]
    ) -> None:
        """Checks that an adapter's loss is a sum over the tasks of means over their hits."""
        total = {
            name: torch.zeros_like(value) for name, value in whole.items() if name.startswith("its adapter's loss")
        }
        for half in halves:
            for task, label_B in half.labels.items():
                share = float(half.teacher.hit[task].sum()) / float(lesson.teacher.hit[task].sum())
                of_task = outcome(strategy, student, replace(half, labels={task: label_B}))
                for name in total:
                    total[name] = total[name] + share * of_task[name]
        for name, value in total.items():
            check_close(
                value,
                whole[name],
                f"{name}, of two parts of a batch, each task weighed by its hits, and of all of it: `decomposes`",
            )

    def test_low_precision_is_close(self, fields: Mapping[str, Any]) -> None:
        """Computes the loss under bfloat16 autocast, under which training may run."""
        student, lesson = Student(self.tasks, torch.float32), self.lesson(dtype=torch.float32)
        strategy = self.make_used(fields, student)
        expected = losses(strategy, student, lesson)["the loss"].item()
        with torch.autocast("cpu", torch.bfloat16):
            actual = losses(strategy, student, lesson)["the loss"].item()
        close = abs(actual - expected) <= 0.05 * abs(expected)
        assert close, f"under bfloat16 autocast a loss of {expected:.3g} is {actual:.3g}, 5% allowed"

    def test_labels_are_learned_by_a_step_alone(self, fields: Mapping[str, Any]) -> None:
        """Changes labels before a step: a soft label with this very batch's labels would seem better than it is.

        Labels reach it by a step of the optimizer; a loss that was only computed leaves nothing of them.
        """
        student, lesson = Student(self.tasks), self.lesson()
        other = replace(lesson, labels={task: 1 - label_B for task, label_B in lesson.labels.items()})
        used = self.make_used(fields, student)
        taught, adapted = zip(
            *(self._after(used, student, learned, lesson) for learned in (lesson, other)), strict=True
        )
        why = "of a batch depends on the labels that adapter_loss has been given of it, before any step"
        assert torch.equal(*taught), f"the loss {why}"
        for task, soft_B in adapted[0].items():
            same = torch.equal(soft_B, adapted[1][task])
            assert same, f"adapt() of {task!r} depends on labels that its losses have been given, before any step"

    def _after(
        self, used: Any, student: Student, learned: Lesson, lesson: Lesson
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Returns the loss of a lesson, and its adapted labels, after losses have been computed with some labels."""
        strategy, output = deepcopy(used), student(lesson.x_BI)
        if isinstance(strategy, LabelAdapter):
            strategy.adapter_loss(learned.teacher, learned.labels)
        loss = deepcopy(strategy).loss(output, with_sums(strategy, output, lesson.teacher), lesson.labels)
        strategy.loss(output, with_sums(strategy, output, learned.teacher), learned.labels)
        adapted = strategy.adapt(lesson.teacher).probabilities if isinstance(strategy, LabelAdapter) else {}
        return loss.detach(), adapted

    def _with_optimizer(self, fields: Mapping[str, Any], student: Student) -> tuple[Any, torch.optim.Optimizer]:
        strategy = self.make_used(fields, student)
        if not isinstance(strategy, LabelAdapter):
            pytest.skip(f"{self.component.__qualname__} is no label adapter")
        return strategy, strategy.adapter_optimizer()


def _moves(computed: Mapping[str, Tensor], loss: str, name: str) -> bool:
    gradient = computed.get(f"{loss}'s gradient of {name}")
    return gradient is not None and bool(gradient.any())


def _differs(name: str, expected: Mapping[str, Tensor], computed: Sequence[Mapping[str, Tensor]]) -> bool:
    """Tells whether a tensor is another in any of several outcomes."""
    return not all(torch.equal(values[name], expected[name]) for values in computed)
