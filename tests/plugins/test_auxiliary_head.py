"""`auxiliary_head`: distillation through heads of its own."""

from __future__ import annotations

import pytest
import torch
from checks import check_offers
from safetensors.torch import load, save
from students import Head, Student, batch, bce, minimise, one_hot_stream, teacher
from torch.nn.functional import binary_cross_entropy_with_logits

import exfm_plugins.auxiliary_head
from exfm import StudentOutput, StudentShape, Supervision
from exfm_plugins.auxiliary_head.strategy import AuxiliaryHead


def build(student: Student, *tasks: str, **fields: float) -> AuxiliaryHead:
    return AuxiliaryHead(AuxiliaryHead.Config(teacher="fm", **fields), student.shape, teacher(*tasks))


def gradients(student: Student, strategy: AuxiliaryHead, size: int = 30) -> dict[str, torch.Tensor]:
    """Of the distillation loss, by part; zeros where it does not reach."""
    x, supervision, labels = batch(size)
    loss = strategy.loss(student(x), supervision, labels)
    parts = {"trunk": student.trunk.weight, "serving": student.heads[0].weight}
    parts["distillation"] = next(strategy.parameters())
    found = torch.autograd.grad(loss, list(parts.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parts, found, strict=True))


@pytest.mark.parametrize("tasks", [("click",), ("buy", "click", "share")])
@pytest.mark.parametrize("label_scale", [0.5, 1.0, 5.0])
def test_is_the_published_loss(tasks: tuple[str, ...], label_scale: float) -> None:
    student = Student()
    strategy = build(student, *tasks, label_scale=label_scale, gradient_scale=3, weight=2.5)
    x, supervision, labels = batch(40, tasks)
    output = student(x)
    expected = 0.0
    for head, task in zip(strategy.heads.values(), strategy.tasks, strict=True):
        for row in range(40):
            if supervision.hit[task][row]:
                target = (label_scale * supervision.probabilities[task][row]).clamp(max=1)
                logit = head.weight[0] @ output.representation_BR[row] + head.bias[0]
                expected += 2.5 * bce(logit, target).item() / 40
    assert strategy.loss(output, supervision, labels).item() == pytest.approx(expected, rel=1e-9)


def test_each_loss_leaves_the_other_ones_head_alone() -> None:
    student = Student()
    strategy = build(student, "click", "buy")
    found = gradients(student, strategy)
    assert not found["serving"].any()
    assert found["trunk"].any() and found["distillation"].any()
    x, _, labels = batch(30)
    student.label_loss(student(x), labels).backward()
    assert all(parameter.grad is None for parameter in strategy.parameters())
    assert student.heads[0].weight.grad.any()


@pytest.mark.parametrize("scale", [0.0, 0.5, 4.0, 32.0])
def test_gradient_scale_multiplies_the_trunks_gradient_alone_and_exactly(scale: float) -> None:
    student = Student()
    plain, scaled = build(student, "click", "buy"), build(student, "click", "buy", gradient_scale=scale)
    scaled.load_state_dict(plain.state_dict())
    one, other = gradients(student, plain), gradients(student, scaled)
    assert torch.equal(other["trunk"], scale * one["trunk"])
    assert torch.equal(other["distillation"], one["distillation"])


def test_gradient_scale_does_not_change_the_forward_pass_by_a_bit() -> None:
    student = Student().float()
    shape = StudentShape(student.shape.tasks, 4, lambda: Head(4).float())
    x, supervision, labels = batch(200)
    output = student(x.float())
    losses = []
    for scale in (1.0, 20.0, 0.3):
        torch.manual_seed(0)
        config = AuxiliaryHead.Config(teacher="fm", gradient_scale=scale)
        losses.append(AuxiliaryHead(config, shape, teacher("click")).loss(output, supervision, labels))
    assert losses[0].dtype == torch.float32
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


def test_scaled_labels_are_clipped_at_one() -> None:
    student = Student(("click",))
    strategy = build(student, "click", label_scale=5)
    x, _, labels = batch(3, ("click",))
    everywhere = {"click": torch.ones(3, dtype=torch.bool)}
    losses = [
        strategy.loss(student(x), Supervision({"click": torch.full((3,), p, dtype=torch.float64)}, everywhere), labels)
        for p in (0.1, 0.2, 0.9)
    ]
    assert torch.equal(losses[1], losses[2])
    assert not torch.equal(losses[0], losses[1])


def test_a_miss_contributes_nothing_whatever_its_value() -> None:
    student = Student(("click",))
    strategy = build(student, "click")
    x, supervision, labels = batch(20, ("click",))
    other = torch.where(supervision.hit["click"], supervision.probabilities["click"], -9e9)
    losses = [
        strategy.loss(student(x), Supervision({"click": p}, supervision.hit), labels)
        for p in (supervision.probabilities["click"], other)
    ]
    assert torch.equal(*losses)
    found = [torch.autograd.grad(loss, [student.trunk.weight, *strategy.parameters()]) for loss in losses]
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_batches_are_finite(size: int) -> None:
    student = Student()
    strategy = build(student, "click", "buy")
    x, supervision, labels = batch(size)
    loss = strategy.loss(student(x), supervision, labels)
    loss.backward()
    assert loss.isfinite() and student.trunk.weight.grad.isfinite().all()
    if not size:
        assert loss.item() == 0


def test_state_belongs_to_tasks_by_name_however_they_are_called_and_ordered() -> None:
    tasks = ("keys", "a.b", "a%2Eb", "click")
    student, turned = Student(tasks), Student(tasks[::-1])
    one, other = build(student, *tasks), build(turned, *tasks)
    other.load_state_dict(load(save(one.state_dict())))
    x, supervision, labels = batch(10, tasks)
    output = student(x)
    torch.testing.assert_close(other.loss(output, supervision, labels), one.loss(output, supervision, labels))
    assert len(one.state_dict()) == 2 * len(tasks)


def test_heads_are_not_the_serving_heads_and_not_shared() -> None:
    student = Student()
    strategy = build(student, "click", "buy")
    pointers = [parameter.data_ptr() for parameter in (*student.parameters(), *strategy.parameters())]
    assert len(set(pointers)) == len(pointers)


def test_no_shared_task_is_an_error_that_names_both_sides() -> None:
    with pytest.raises(ValueError, match=r"'fm'.*click, buy.*view, share"):
        build(Student(), "view", "share")


def test_two_heads_converge_to_the_optimum_of_the_labels() -> None:
    """Theorem 3.1, the good half: the serving head ends at the label rate, the teacher's bias in its own head."""
    x, label, soft = one_hot_stream()
    shape = StudentShape(("click",), 4, lambda: Head(4, bias=False))
    config = AuxiliaryHead.Config(teacher="fm", weight=2.0, gradient_scale=3.0)
    strategy, serving = AuxiliaryHead(config, shape, teacher("click")), Head(4, bias=False)
    everywhere = {task: torch.ones(len(x), dtype=torch.bool) for task in ("click", "buy", "share")}

    def loss() -> torch.Tensor:
        logit = serving(x)
        supervision = Supervision({"click": soft}, everywhere)
        distillation = strategy.loss(StudentOutput(x, {"click": logit}), supervision, {"click": label})
        return binary_cross_entropy_with_logits(logit, label) + distillation

    minimise(loss, [*serving.parameters(), *strategy.parameters()])
    counts = x.sum(0)
    (distillation,) = strategy.parameters()
    torch.testing.assert_close(serving.weight[0].detach().sigmoid(), (x.T @ label) / counts, rtol=0, atol=1e-6)
    torch.testing.assert_close(distillation[0].detach().sigmoid(), (x.T @ soft) / counts, rtol=0, atol=1e-6)


def test_plugin_offers_it() -> None:
    check_offers(exfm_plugins.auxiliary_head, AuxiliaryHead)


@pytest.mark.parametrize("wrong", [{"label_scale": 0}, {"gradient_scale": -1}, {"weight": float("inf")}, {"alpha": 5}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AuxiliaryHead.Config(teacher="fm", **wrong)
