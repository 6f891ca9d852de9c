"""What every transfer strategy must hold."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from exfm.interfaces.transfer_strategy import Parts
from exfm.testing.lessons import (
    Lesson,
    Student,
    check_near,
    check_same,
    gradients,
    losses,
    outcome,
    random_parts,
)
from exfm.testing.network import check_close
from exfm.testing.strategy_effects import StrategyEffectTests


class TransferStrategyTests(StrategyEffectTests):
    """Tests of a transfer strategy; see ``exfm.testing`` for how to use them.

    ``configs`` leave ``teacher`` out. A strategy under test has been told of the parts it reads and has already seen a
    batch, unless a test says otherwise. Its student has the tables ``items`` and ``shops`` in width 4 and an encoder of
    the sequence ``history``; so has its teacher, but ``items`` in width 6.

    Attributes:
        tasks: of student and teacher, at least two.
        needs_embedding: whether it learns from the teacher's embeddings; only then are there any.
        teaches_serving_heads: whether its loss means to reach the serving heads.
        teaches_trunk: whether its loss means to reach the student's representation.
    """

    def test_loss_is_a_finite_scalar(self, fields: Mapping[str, Any]) -> None:
        """It is added to the student's loss, from the first batch on, however few examples a batch has."""
        for dtype in (torch.float32, torch.float64):
            student = Student(self.tasks, dtype)
            for strategy in (self.make(fields, student), self.make_used(fields, student)):
                for size in (8, 1, 0):
                    found = outcome(strategy, student, self.lesson(size, dtype=dtype))
                    loss = found["the loss"]
                    assert loss.shape == (), f"the loss is {tuple(loss.shape)} and not a scalar"
                    assert loss.dtype == dtype, f"student and strategy are {dtype}, the loss is {loss.dtype}"
                    _check_finite(found, f"of {size} examples")

    def test_what_is_not_known_is_left_out(self, fields: Mapping[str, Any]) -> None:
        """Labels may come late, and a teacher may have nothing to say of a task."""
        student, lesson, first = Student(self.tasks), self.lesson(), self.tasks[0]
        strategy = self.make_used(fields, student)
        parts = {
            "without labels": replace(lesson, labels={}),
            f"with labels of {first!r} alone": replace(lesson, labels={first: lesson.labels[first]}),
            f"with supervision of {first!r} alone": lesson.with_hits({first: lesson.supervision.hit[first]}),
        }
        for what, part in parts.items():
            _check_finite(outcome(strategy, student, part), what)

    def test_a_miss_changes_nothing(self, fields: Mapping[str, Any]) -> None:
        """Where the teacher has no row, the values it comes with have no meaning."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        actual = outcome(strategy, student, lesson.with_other_misses())
        for what, value in outcome(strategy, student, lesson).items():
            assert torch.equal(actual[what], value), f"{what} depends on the supervision's values at misses"

    def test_a_batch_of_misses_teaches_nothing(self, fields: Mapping[str, Any]) -> None:
        """Before a teacher's first snapshot there are misses alone: the student then learns from labels alone."""
        student = Student(self.tasks)
        for strategy in (self.make(fields, student), self.make_used(fields, student)):
            found = outcome(strategy, student, self.lesson().of_misses())
            wrong = [what for what, value in found.items() if not what.endswith("afterwards") and value.any()]
            assert not wrong, f"in a batch of misses it is not zero: {', '.join(wrong)}"

    def test_loss_is_a_mean_over_the_batch(self, fields: Mapping[str, Any]) -> None:
        """A miss counts 0 in the mean: the fewer examples the teacher knows, the less it weighs beside the labels."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        few = lesson.take([0, 1, 2, 4, 5])
        with_misses = lesson.take([0, 1, 2, 4, 5, 3, 3, 3])  # the fourth is a miss of every task
        sums = [losses(strategy, student, part)["the loss"] * part.size for part in (with_misses, few)]
        check_close(sums[0], sums[1], "the loss times B, with three misses more in the batch and without")

    def test_order_of_examples_does_not_matter(self, fields: Mapping[str, Any]) -> None:
        """What is learned from a batch must not depend on places in it."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        turned = lesson.take(list(reversed(range(lesson.size))))
        actual, expected = (outcome(strategy, student, part) for part in (turned, lesson))
        check_near(actual, expected, "of the same examples in reverse order")

    def test_teacher_gets_no_gradient(self, fields: Mapping[str, Any]) -> None:
        """The teacher is not trained with the student: its supervision is data."""
        student, lesson = Student(self.tasks), self.lesson().as_leaves()
        leaves = [tensor for tensor in lesson.tensors().values() if tensor.requires_grad]
        for what, loss in losses(self.make_used(fields, student), student, lesson).items():
            reached = any(gradient.any() for gradient in gradients(loss, leaves))
            assert not reached, f"a gradient of {what} reaches the supervision; detach it"

    def test_serving_heads_are_left_to_the_labels(self, fields: Mapping[str, Any]) -> None:
        """What reaches a serving head is served, the teacher's bias too: a strategy that means to says so."""
        student = Student(self.tasks)
        found = outcome(self.make_used(fields, student), student, self.lesson())
        reached = [what for what, value in found.items() if "of the student's heads" in what and value.any()]
        if self.teaches_serving_heads:
            assert reached, "teaches_serving_heads is True, but no gradient reaches the serving heads"
        else:
            assert not reached, f"teaches_serving_heads is False, but not zero is {', '.join(reached)}"

    def test_every_part_learns(self, fields: Mapping[str, Any]) -> None:
        """A strategy without a gradient costs time and teaches nothing."""
        student = Student(self.tasks)
        strategy = self.make_used(fields, student)
        with torch.no_grad():
            for parameter in strategy.parameters():
                parameter += 0.1  # what is zero at initialisation stops the gradient of what comes before it
        found = outcome(strategy, student, self.lesson())
        in_tables = {id(parameter) for part in strategy.table_offsets().values() for parameter in part.parameters()}
        names = [f"its {name}" for name, parameter in strategy.named_parameters() if id(parameter) not in in_tables]
        names += ["the student's trunk.weight"] if self.teaches_trunk else []
        still = [name for name in names if not any(_moves(found, loss, name) for loss in ("the loss", "its own loss"))]
        assert not still, f"no gradient reaches {', '.join(still)}"

    def test_own_optimizer_has_a_part_of_its_own(self, fields: Mapping[str, Any]) -> None:
        """What ``own_loss`` trains, the student's optimizer leaves alone, so their losses must not mix."""
        student = Student(self.tasks)
        strategy, optimizer = self._with_optimizer(fields, student)
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        trains = {f"its {name}": id(parameter) in own for name, parameter in strategy.named_parameters()}
        assert len(own) == sum(trains.values()), "own_optimizer() has parameters that are not the strategy's"
        found = outcome(strategy, student, self.lesson())
        for name, is_own in trains.items():
            loss, verb = ("the loss", "trains") if is_own else ("its own loss", "does not train")
            assert not _moves(found, loss, name), f"{loss} reaches {name}, which own_optimizer() {verb}"

    def test_own_optimizer_steps_on_labels_alone(self, fields: Mapping[str, Any]) -> None:
        """Each batch steps it: one without labels, or of misses, must move nothing, not even by momentum."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, optimizer = self._with_optimizer(fields, student)

        def moved(part: Lesson) -> list[str]:
            before = deepcopy(strategy.state_dict())
            optimizer.zero_grad()
            strategy.own_loss(part.supervision, part.labels).backward()
            optimizer.step()
            return [name for name, value in strategy.state_dict().items() if not torch.equal(value, before[name])]

        assert moved(lesson), "with labels and hits, a step of own_optimizer() moves nothing"
        for what, part in {"without labels": replace(lesson, labels={}), "of misses": lesson.of_misses()}.items():
            names = moved(part)
            assert not names, f"in a batch {what}, own_optimizer() moves {', '.join(names)}"

    def test_tasks_of_other_names(self, fields: Mapping[str, Any]) -> None:
        """With ``tasks``, the teacher's tasks have other names; supervision comes under the student's."""
        student, lesson = Student(self.tasks), self.lesson()
        mapping = {task: f"teacher_{task}" for task in self.tasks}
        plain = self.make({**fields, "tasks": {}}, student)
        renamed = self.make({**fields, "tasks": mapping}, student, teacher=self.teacher([*mapping.values()]))
        actual, expected = (outcome(strategy, student, lesson) for strategy in (renamed, plain))
        check_same(actual, expected, "where the teacher's tasks have names of their own")
        last = self.tasks[-1]
        one = self.make({**fields, "tasks": {last: "other"}}, student, teacher=self.teacher(["other"]))
        part = lesson.with_hits({last: lesson.supervision.hit[last]})
        _check_finite(outcome(one, student, part), f"where {last!r} alone is taught")

    def test_teacher_without_embeddings(self, fields: Mapping[str, Any]) -> None:
        """Embeddings are stored on request: who needs them says so before anything is trained."""
        if not self.needs_embedding:
            pytest.skip(f"{type(self).__name__}.needs_embedding is False: no test gives any")
        teacher = replace(self.teacher(self.tasks), embedding_dim=None)
        with pytest.raises(ValueError, match=r"models\.fm\.supervision\.embedding"):
            self.make(fields, Student(self.tasks), teacher=teacher)

    def test_nothing_is_left_in_the_student(self, fields: Mapping[str, Any]) -> None:
        """What is served is the student alone: with a strategy no module, no hook and no value more than without."""
        student, lesson = Student(self.tasks), self.lesson()
        before = deepcopy(student)
        strategy = self.make_used(fields, student)
        outcome(strategy, student, lesson)
        shared = {id(one) for one in student.parameters()} & {id(one) for one in strategy.parameters()}
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
        actual, expected = (one(lesson.x_BI).logits for one in (student, before))
        check_same(actual, expected, "served with a strategy and without")

    def test_inputs_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """Other strategies learn from the same tensors: none may write into them."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, output = self.make_used(fields, student), student(lesson.x_BI)
        given = lesson.tensors() | {f"logits of {task}": logit for task, logit in output.logits.items()}
        given["representation"] = output.representation_BR
        before = {name: tensor.clone() for name, tensor in given.items()}
        with torch.no_grad():
            strategy.loss(output, lesson.supervision, lesson.labels)
            if strategy.own_optimizer() is not None:
                strategy.own_loss(lesson.supervision, lesson.labels)
        for name, tensor in given.items():
            assert torch.equal(tensor, before[name]), f"the {name} were changed in place"

    def test_runs_repeat(self, fields: Mapping[str, Any]) -> None:
        """All randomness is drawn from torch's generator when the strategy is built; training mode changes nothing."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        expected = outcome(strategy.train(), student, lesson)
        check_same(outcome(self.make_used(fields, student), student, lesson), expected, "built again under one seed")
        check_same(outcome(strategy.eval(), student, lesson), expected, "in training and in evaluation mode")

    def test_saved_state_is_the_whole_state(self, fields: Mapping[str, Any]) -> None:
        """A run that stopped goes on from ``state_dict()``, written without pickle, to the same bits."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy, other = self.make_used(fields, student), self.make(fields, student, seed=1)
        other.load_state_dict(load(save(strategy.state_dict())))
        actual, expected = (outcome(one, student, lesson) for one in (other, strategy))
        check_same(actual, expected, "of state loaded into a strategy of another seed")

    def test_parts_have_names_that_there_are(self, fields: Mapping[str, Any]) -> None:
        """What is read of a teacher is kept for it, if ``reads_parts`` says so; what is written has to be there."""
        student = Student(self.tasks)
        strategy = self._build(fields, student, 0, None)
        asked, known = strategy.teacher_parts(), student.shape.parts
        assert self.component.reads_parts or not asked, "teacher_parts() names some, so reads_parts must be True"
        strange = [part for part in asked if part not in self.teacher(self.tasks).parts]
        strange += [part for part in strategy.frozen_parts() if part not in known]
        strange += [table for table in strategy.table_offsets() if table not in student.shape.table_rows]
        assert not strange, f"there is no {', '.join(strange)}"

    def test_what_it_writes_has_the_students_shapes(self, fields: Mapping[str, Any]) -> None:
        """What ``refresh`` returns is written into the student, and offsets are added to all rows of a table."""
        student = Student(self.tasks)
        strategy = self._build(fields, student, 0, None)
        for seed in (0, 1):
            given, written = self._tell(strategy, seed)
            for part, tensors in written.items():
                shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
                expected = student.shape.part(part).tensors
                assert shapes == expected, f"for {part} of shapes {dict(expected)} it gives {shapes}"
            untouched = random_parts(self.teacher(self.tasks).parts, given, seed)
            check_same(_flat(given), _flat(untouched), "before it was told of them, and after")
        for table, added_RD in _offsets(strategy, student).items():
            wanted = (student.shape.table_rows[table], student.shape.embedding_dim)
            assert added_RD.shape == wanted, f"to table {table!r}, {wanted}, it adds {tuple(added_RD.shape)}"
            assert added_RD.isfinite().all(), f"what it adds to table {table!r} is not finite"

    def test_parts_are_known_again_after_an_interruption(self, fields: Mapping[str, Any]) -> None:
        """A window that is begun again is told of the same parts: with the saved state they give the same bits."""
        if not self.component.reads_parts:
            pytest.skip(f"{self.component.__qualname__} reads no parts of its teacher")
        student, lesson = Student(self.tasks), self.lesson()
        strategy, other = self.make_used(fields, student), self._build(fields, student, 1, None)
        other.load_state_dict(load(save(strategy.state_dict())))
        (asked, written), (asked_again, again) = (self._tell(one, seed=1) for one in (strategy, other))
        assert asked.keys() == asked_again.keys(), f"it asked for {[*asked]}, and after a restart for {[*asked_again]}"
        for actual, expected in (
            (_flat(again), _flat(written)),
            (_offsets(other, student), _offsets(strategy, student)),
            (outcome(other, student, lesson), outcome(strategy, student, lesson)),
        ):
            check_same(actual, expected, "in a window that was begun once, and again")

    def test_corrected_labels_are_probabilities(self, fields: Mapping[str, Any]) -> None:
        """They are scored in the report, and change nothing."""
        student, lesson = Student(self.tasks), self.lesson()
        strategy = self.make_used(fields, student)
        before = deepcopy(strategy.state_dict())
        corrected = strategy.corrected(lesson.supervision)
        for task, soft_B in corrected.items():
            hit_B = lesson.supervision.hit[task]
            assert soft_B.shape == hit_B.shape, f"of {task!r} it has {tuple(soft_B.shape)}, not {tuple(hit_B.shape)}"
            assert not soft_B.requires_grad, f"a gradient could reach what corrects {task!r}; detach it"
            wrong = hit_B & ~((soft_B >= 0) & (soft_B <= 1))
            assert not wrong.any(), f"of {task!r} it has {soft_B[wrong][0].item()}, which is no probability"
        check_same(strategy.state_dict(), before, "after corrected(), and before")
        part = lesson.with_hits({self.tasks[0]: lesson.supervision.hit[self.tasks[0]]})
        assert strategy.corrected(part.supervision).keys() <= {self.tasks[0]}, "it corrects what is not taught"

    def test_builds_without_memory(self, fields: Mapping[str, Any]) -> None:
        """``exfm validate`` builds every strategy on the meta device, where tensors have shapes and no values."""
        with torch.device("meta"):
            strategy = self.component(self.config(fields), Student(self.tasks).shape, self.teacher(self.tasks))
        real = [name for name, value in strategy.state_dict().items() if not value.is_meta]
        assert not real, f"built on the meta device, {', '.join(real)} took memory; leave the device to torch's default"

    def test_low_precision_is_close(self, fields: Mapping[str, Any]) -> None:
        """Training may run under bfloat16 autocast."""
        student, lesson = Student(self.tasks, torch.float32), self.lesson(dtype=torch.float32)
        strategy = self.make_used(fields, student)
        expected = losses(strategy, student, lesson)["the loss"].item()
        with torch.autocast("cpu", torch.bfloat16):
            actual = losses(strategy, student, lesson)["the loss"].item()
        close = abs(actual - expected) <= 0.05 * abs(expected)
        assert close, f"under bfloat16 autocast a loss of {expected:.3g} is {actual:.3g}, 5% allowed"

    def _with_optimizer(self, fields: Mapping[str, Any], student: Student) -> tuple[Any, torch.optim.Optimizer]:
        strategy = self.make_used(fields, student)
        optimizer = strategy.own_optimizer()
        if optimizer is None:
            pytest.skip(f"{self.component.__qualname__} has no optimizer of its own")
        return strategy, optimizer


def _check_finite(found: Mapping[str, Tensor], what: str) -> None:
    wrong = [name for name, value in found.items() if not value.isfinite().all()]
    assert not wrong, f"{what}, not finite: {', '.join(wrong)}"


def _flat(parts: Parts) -> dict[str, Tensor]:
    return {f"{part} {name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _offsets(strategy: Any, student: Student) -> dict[str, Tensor]:
    """What it adds to every row, by table."""
    rows = student.shape.table_rows
    with torch.no_grad():
        return {table: offset(torch.arange(rows[table])) for table, offset in strategy.table_offsets().items()}


def _moves(found: Mapping[str, Tensor], loss: str, name: str) -> bool:
    gradient = found.get(f"{loss}'s gradient of {name}")
    return gradient is not None and bool(gradient.any())
