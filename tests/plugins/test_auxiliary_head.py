"""`auxiliary_head`: distillation through heads of its own."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log

import pytest
import torch
from safetensors.torch import load, save

import exfm_plugins.transfer
from exfm.testing import DistillationStrategyTests
from exfm.transfer import StudentSpec, TeacherOutput
from exfm_plugins.transfer.auxiliary_head.strategy import AuxiliaryHead
from tests.plugins.checks import gradient
from tests.plugins.students import Head, Student, batch, bce, distilled, teacher


class TestAuxiliaryHead(DistillationStrategyTests):
    component = AuxiliaryHead
    plugin = exfm_plugins.transfer
    configs = ({}, {"label_scale": "auto", "gradient_scale": 2})


def build(student: Student, *tasks: str, weight: float = 1, **fields: object) -> AuxiliaryHead:
    config = AuxiliaryHead.Config(teacher="fm", weight=weight, **fields)
    return AuxiliaryHead(config, student.spec, teacher(*tasks))


def gradients(student: Student, strategy: AuxiliaryHead, size: int = 30) -> dict[str, torch.Tensor]:
    """Of the distillation loss, by part; zeros where it does not reach."""
    x, supervision, labels = batch(size)
    loss = strategy.loss(student(x), supervision, labels)
    parts = {"trunk": student.trunk.weight, "serving": student.head(0).weight}
    parts["distillation"] = distilled(strategy, "click").weight
    found = torch.autograd.grad(loss, list(parts.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(parts, found, strict=True))


@pytest.mark.parametrize("tasks", [("click",), ("buy", "click", "share")])
@pytest.mark.parametrize("label_scale", [0.5, 1.0, 5.0])
def test_is_the_published_loss(tasks: tuple[str, ...], label_scale: float) -> None:
    student = Student()
    strategy = build(student, *tasks, label_scale=label_scale, gradient_scale=3, weight=2.5)
    x, supervision, labels = batch(40, tasks)
    output = student(x)
    strategy.loss(output, supervision, labels)
    for parameter in strategy.parameters():
        torch.nn.init.normal_(parameter)
    found = strategy.loss(output, supervision, labels).item()
    expected = 0.0
    for task in {"click", "buy"} & set(tasks):
        head = distilled(strategy, task)
        for row in range(40):
            if supervision.hit[task][row]:
                target = (label_scale * supervision.probabilities[task][row]).clamp(max=1)
                logit = head.weight[0] @ output.representation_BR[row] + head.bias[0]
                expected += 2.5 * bce(logit, target).item() / 40
    assert found == pytest.approx(expected, rel=1e-9)


def test_each_loss_leaves_the_other_ones_head_alone() -> None:
    student = Student()
    strategy = build(student, "click", "buy")
    found = gradients(student, strategy)
    assert not found["serving"].any()
    assert found["trunk"].any() and found["distillation"].any()
    x, _, labels = batch(30)
    student.label_loss(student(x), labels).backward()
    assert all(parameter.grad is None for parameter in strategy.parameters())
    assert gradient(student.head(0).weight).any()


@pytest.mark.parametrize(("scale", "tolerance"), [(0.0, 0), (0.5, 0), (32.0, 0), (0.3, 1e-12), (20.0, 1e-12)])
def test_gradient_scale_multiplies_the_trunks_gradient_alone_and_exactly(scale: float, tolerance: float) -> None:
    student = Student()
    plain, scaled = build(student, "click", "buy"), build(student, "click", "buy", gradient_scale=scale)
    scaled.load_state_dict(plain.state_dict())
    one, other = gradients(student, plain), gradients(student, scaled)
    torch.testing.assert_close(other["trunk"], scale * one["trunk"], rtol=tolerance, atol=0)
    assert torch.equal(other["distillation"], one["distillation"])


def test_gradient_scale_does_not_change_the_forward_pass_by_a_bit() -> None:
    student = Student().float()
    shape = StudentSpec(student.spec.tasks, 4, lambda: Head(4).float())
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
        strategy.loss(student(x), TeacherOutput({"click": torch.full((3,), p).double()}, everywhere), labels)
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
        strategy.loss(student(x), TeacherOutput({"click": p}, supervision.hit), labels)
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
    assert loss.isfinite() and gradient(student.trunk.weight).isfinite().all()
    if not size:
        assert loss.item() == 0


def test_state_belongs_to_tasks_by_name_however_they_are_called_and_ordered() -> None:
    tasks = ("keys", "type", "items", "click")
    student, turned = Student(tasks), Student(tasks[::-1])
    one, other = build(student, *tasks), build(turned, *tasks)
    other.load_state_dict(load(save(one.state_dict())))
    x, supervision, labels = batch(10, tasks)
    output = student(x)
    torch.testing.assert_close(other.loss(output, supervision, labels), one.loss(output, supervision, labels))


def test_heads_are_not_the_serving_heads_and_not_shared() -> None:
    student = Student()
    strategy = build(student, "click", "buy")
    pointers = [parameter.data_ptr() for parameter in (*student.parameters(), *strategy.parameters())]
    assert len(set(pointers)) == len(pointers)


def test_no_shared_task_is_an_error_that_names_both_sides() -> None:
    with pytest.raises(ValueError, match=r"'fm'.*click, buy.*view, share"):
        build(Student(), "view", "share")


def test_a_head_starts_at_the_mean_of_its_scaled_labels_once() -> None:
    student = Student(("click",))
    strategy = build(student, "click", label_scale=2)
    head = distilled(strategy, "click")
    drawn = head.bias.detach().clone()
    x, supervision, labels = batch(50, ("click",))
    nobody = {"click": torch.zeros(50, dtype=torch.bool)}
    strategy.loss(student(x), replace(supervision, hit=nobody), labels)
    assert torch.equal(head.bias, drawn)
    strategy.loss(student(x), supervision, labels)
    hits = supervision.hit["click"].tolist()
    targets = [min(2 * p, 1.0) for p, hit in zip(supervision.probabilities["click"].tolist(), hits, strict=True) if hit]
    mean = sum(targets) / len(targets)
    assert head.bias.item() == pytest.approx(log(mean / (1 - mean)), rel=1e-9)
    x, supervision, labels = batch(50, ("click",), seed=1)
    strategy.loss(student(x), supervision, labels)
    assert head.bias.item() == pytest.approx(log(mean / (1 - mean)), rel=1e-9)


@pytest.mark.parametrize("rate", [0.01, 0.9])
def test_auto_label_scale_brings_the_mean_of_rare_labels_to_a_half(rate: float) -> None:
    """Alpha is max(1, 0.5 / m), m a mean in which an example counts exp(-1e-5) times the one after it."""
    student = Student(("click",))
    strategy = build(student, "click", label_scale="auto")
    total = count = 0.0
    for seed in range(3):
        x, supervision, labels = batch(500, ("click",), seed)
        soft, hit = rate * supervision.probabilities["click"] ** 0.2, supervision.hit["click"]
        output = student(x)
        found = strategy.loss(output, TeacherOutput({"click": soft}, {"click": hit}), labels).item()
        hits = [p for p, one in zip(soft.tolist(), hit.tolist(), strict=True) if one]
        total, count = (exp(-len(hits) / 1e5) * old + new for old, new in ((total, sum(hits)), (count, len(hits))))
        alpha = max(1.0, 0.5 * count / total)
        head = distilled(strategy, "click")
        logits = (output.representation_BR @ head.weight[0] + head.bias[0])[hit]
        targets = torch.tensor(hits, dtype=torch.float64).mul(alpha).clamp(max=1)
        assert found == pytest.approx(bce(logits, targets).sum().item() / 500, rel=1e-9)
        assert targets.mean() == pytest.approx(0.5, abs=0.02) if rate < 0.1 else alpha == 1


def test_training_goes_on_bit_by_bit_from_a_saved_state() -> None:
    student = Student()
    one, other = (build(student, "click", "buy", label_scale="auto") for _ in range(2))
    x, supervision, labels = batch(50)
    one.loss(student(x), supervision, labels)
    other.load_state_dict(load(save(one.state_dict())))
    x, supervision, labels = batch(50, seed=1)
    assert torch.equal(*(strategy.loss(student(x), supervision, labels) for strategy in (one, other)))
    assert save(one.state_dict()) == save(other.state_dict())


def test_several_teachers_have_heads_of_their_own() -> None:
    student = Student()
    x, _, labels = batch(40)
    strategies = [build(student, "click", "buy"), build(student, "click", weight=3)]
    output = student(x)
    losses = [one.loss(output, batch(40, seed=seed)[1], labels) for seed, one in enumerate(strategies)]
    first, second = (list(one.parameters()) for one in strategies)
    assert not {id(parameter) for parameter in first} & {id(parameter) for parameter in second}
    together = torch.autograd.grad(losses[0] + losses[1], [*first, student.trunk.weight], retain_graph=True)
    alone = torch.autograd.grad(losses[0], [*first, student.trunk.weight], retain_graph=True)
    other = torch.autograd.grad(losses[1], student.trunk.weight)
    assert all(torch.equal(a, b) for a, b in zip(together[:-1], alone[:-1], strict=True))
    torch.testing.assert_close(together[-1], alone[-1] + other[0], rtol=1e-12, atol=1e-15)


def test_tasks_may_go_by_other_names_and_be_absent() -> None:
    student = Student(("click", "cart", "buy"))
    strategy = build(student, "tap", "order", tasks={"cart": "order", "buy": "order"})
    assert set(strategy.heads) == {"task_cart", "task_buy"}
    x, supervision, labels = batch(20, ("buy",))
    loss = strategy.loss(student(x), supervision, labels)
    found = torch.autograd.grad(loss, list(strategy.parameters()), allow_unused=True, materialize_grads=True)
    reached = {name for (name, _), grad in zip(strategy.named_parameters(), found, strict=True) if grad.any()}
    assert reached == {"heads.task_buy.head.weight", "heads.task_buy.head.bias"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"label_scale": 0},
        {"label_scale": "aut"},
        {"gradient_scale": -1},
        {"weight": float("inf")},
        {"alpha": 5},
        {"residual": True},
        {"weight": "auto"},
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AuxiliaryHead.Config(teacher="fm", **wrong)
