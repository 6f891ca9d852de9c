"""`direct`: standard distillation on the serving heads."""

from __future__ import annotations

import pytest
import torch

import exfm_plugins.transfer
from exfm.testing import DistillationStrategyTests
from exfm.transfer import TeacherOutput
from exfm_plugins.transfer.direct.strategy import Direct
from tests.plugins.checks import gradient
from tests.plugins.students import Student, batch, bce, teacher


class TestDirect(DistillationStrategyTests):
    component = Direct
    plugin = exfm_plugins.transfer
    configs = ({}, {"fallback": ["old_fm"], "weight": 2.0}, {"temperature": 3.0})
    teaches_serving_heads = True


def build(student: Student, *tasks: str, weight: float = 1.0) -> Direct:
    return Direct(Direct.Config(teacher="fm", weight=weight), student.spec, teacher(*tasks))


@pytest.mark.parametrize("tasks", [("click",), ("click", "buy"), ("buy", "click", "share")])
def test_is_the_cross_entropy_of_serving_logits_and_teacher(tasks: tuple[str, ...]) -> None:
    student = Student()
    x, supervision, labels = batch(40, tasks)
    output = student(x)
    expected = 0.0
    for task in {"click", "buy"} & set(tasks):
        for row in range(40):
            if supervision.hit[task][row]:
                expected += 2.5 * bce(output.logits[task][row], supervision.probabilities[task][row]).item() / 40
    loss = build(student, *tasks, weight=2.5).loss(output, supervision, labels)
    assert loss.shape == ()
    assert loss.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_temperature_divides_both_logits(temperature: float) -> None:
    student = Student(("click",))
    x, supervision, labels = batch(40, ("click",))
    output = student(x)
    expected = 0.0
    for row in torch.nonzero(supervision.hit["click"]).flatten().tolist():
        soft = (supervision.probabilities["click"][row].logit() / temperature).sigmoid()
        expected += temperature**2 * bce(output.logits["click"][row] / temperature, soft).item() / 40
    strategy = Direct(Direct.Config(teacher="fm", temperature=temperature), student.spec, teacher("click"))
    assert strategy.loss(output, supervision, labels).item() == pytest.approx(expected, rel=1e-9)


def test_at_a_high_temperature_the_gradient_is_that_of_the_logits_squared_distance() -> None:
    student = Student(("click",))
    x, supervision, labels = batch(40, ("click",))
    output = student(x)
    strategy = Direct(Direct.Config(teacher="fm", temperature=1e4), student.spec, teacher("click"))
    distance_B = output.logits["click"] - supervision.probabilities["click"].logit()
    losses = [
        strategy.loss(output, supervision, labels),
        (distance_B.square() / 8 * supervision.hit["click"]).sum() / 40,
    ]
    actual, expected = (torch.autograd.grad(loss, output.logits["click"], retain_graph=True) for loss in losses)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_has_no_parameters_and_ignores_labels() -> None:
    student = Student()
    strategy = build(student, "click")
    x, supervision, labels = batch(10)
    assert not list(strategy.parameters()) and not strategy.state_dict()
    flipped = {task: 1 - label for task, label in labels.items()}
    output = student(x)
    assert torch.equal(strategy.loss(output, supervision, labels), strategy.loss(output, supervision, flipped))


def test_a_miss_contributes_nothing_whatever_its_value() -> None:
    student = Student(("click",))
    x, supervision, labels = batch(20, ("click",))
    other = torch.where(supervision.hit["click"], supervision.probabilities["click"], 9e9)
    strategy = build(student, "click")
    losses = [
        strategy.loss(student(x), TeacherOutput({"click": p}, supervision.hit), labels)
        for p in (supervision.probabilities["click"], other)
    ]
    assert torch.equal(*losses)
    gradients = [torch.autograd.grad(loss, student.trunk.weight)[0] for loss in losses]
    assert torch.equal(*gradients)
    nobody = TeacherOutput(supervision.probabilities, {"click": torch.zeros(20, dtype=torch.bool)})
    assert strategy.loss(student(x), nobody, labels).item() == 0


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_batches_are_finite(size: int) -> None:
    student = Student()
    x, supervision, labels = batch(size)
    loss = build(student, "click", "buy").loss(student(x), supervision, labels)
    loss.backward()
    assert loss.isfinite() and gradient(student.trunk.weight).isfinite().all()
    if not size:
        assert loss.item() == 0


def test_float32_logits_learn_from_float64_supervision() -> None:
    student = Student(("click",)).float()
    x, supervision, labels = batch(8, ("click",))
    assert build(student, "click").loss(student(x.float()), supervision, labels).dtype == torch.float32


def test_no_shared_task_is_an_error_that_names_both_sides() -> None:
    with pytest.raises(ValueError, match=r"'fm'.*click, buy.*view, share"):
        build(Student(), "view", "share")


def test_no_gradient_goes_to_the_teacher() -> None:
    student = Student(("click",))
    x, supervision, labels = batch(10, ("click",))
    soft = supervision.probabilities["click"].requires_grad_()
    loss = build(student, "click").loss(student(x), supervision, labels)
    assert torch.autograd.grad(loss, soft, allow_unused=True) == (None,)


def test_a_task_that_no_teacher_present_knows_is_left_out() -> None:
    student = Student()
    x, supervision, labels = batch(10, ("click",))
    found = build(student, "click", "buy").loss(student(x), supervision, labels)
    assert torch.equal(found, build(student, "click").loss(student(x), supervision, labels))


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"weight": float("nan")}, {"label_scale": 2}, {"teacher": None}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Direct.Config(**{"teacher": "fm", **wrong})
