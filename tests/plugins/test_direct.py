"""`direct`: standard distillation on the serving heads."""

from __future__ import annotations

import pytest
import torch
from checks import check_offers
from students import Student, batch, bce, minimise, one_hot_stream, teacher
from torch.nn.functional import binary_cross_entropy_with_logits

import exfm_plugins.direct
from exfm import StudentOutput, Supervision
from exfm_plugins.direct.strategy import Direct


def build(student: Student, *tasks: str, weight: float = 1.0) -> Direct:
    return Direct(Direct.Config(teacher="fm", weight=weight), student.shape, teacher(*tasks))


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
        strategy.loss(student(x), Supervision({"click": p}, supervision.hit), labels)
        for p in (supervision.probabilities["click"], other)
    ]
    assert torch.equal(*losses)
    gradients = [torch.autograd.grad(loss, student.trunk.weight)[0] for loss in losses]
    assert torch.equal(*gradients)
    nobody = Supervision(supervision.probabilities, {"click": torch.zeros(20, dtype=torch.bool)})
    assert strategy.loss(student(x), nobody, labels).item() == 0


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_batches_are_finite(size: int) -> None:
    student = Student()
    x, supervision, labels = batch(size)
    loss = build(student, "click", "buy").loss(student(x), supervision, labels)
    loss.backward()
    assert loss.isfinite() and student.trunk.weight.grad.isfinite().all()
    if not size:
        assert loss.item() == 0


def test_float32_logits_learn_from_float64_supervision() -> None:
    student = Student(("click",)).float()
    x, supervision, labels = batch(8, ("click",))
    assert build(student, "click").loss(student(x.float()), supervision, labels).dtype == torch.float32


def test_no_shared_task_is_an_error_that_names_both_sides() -> None:
    with pytest.raises(ValueError, match=r"'fm'.*click, buy.*view, share"):
        build(Student(), "view", "share")


def test_one_head_converges_to_the_mixture_of_labels_and_teacher() -> None:
    """Theorem 3.1, the bad half: the optimum of the shared head is (label rate + w * teacher) / (1 + w)."""
    x, label, soft = one_hot_stream()
    student, weight = Student(("click",)), 2.0
    strategy = build(student, "click", weight=weight)
    logit = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    everywhere = {task: torch.ones(len(x), dtype=torch.bool) for task in ("click", "buy", "share")}

    def loss() -> torch.Tensor:
        output = StudentOutput(x, {"click": x @ logit})
        distillation = strategy.loss(output, Supervision({"click": soft}, everywhere), {"click": label})
        return binary_cross_entropy_with_logits(x @ logit, label) + distillation

    minimise(loss, [logit])
    rate = (x.T @ label) / x.sum(0)
    mixture = (rate + weight * (x.T @ soft) / x.sum(0)) / (1 + weight)
    torch.testing.assert_close(logit.detach().sigmoid(), mixture, rtol=0, atol=1e-6)
    assert (logit.detach().sigmoid() - rate).abs().max() > 0.05


def test_plugin_offers_it() -> None:
    check_offers(exfm_plugins.direct, Direct)


@pytest.mark.parametrize("wrong", [{"weight": -1}, {"weight": float("nan")}, {"label_scale": 2}, {"teacher": None}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Direct.Config(**{"teacher": "fm", **wrong})
