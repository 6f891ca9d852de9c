"""`student_adapter`: the teacher corrected by fresh labels, then learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

import exfm
import exfm_plugins.backbones
import exfm_plugins.encoders
import exfm_plugins.parallel
import exfm_plugins.sources
import exfm_plugins.transfer
from exfm.testing import DistillationStrategyTests
from exfm.transfer import StudentSpec, TeacherOutput
from exfm_plugins.transfer.student_adapter.strategy import StudentAdapter
from tests.plugins.checks import Net, gradient
from tests.plugins.students import Head, Student, batch, bce, distilled, teacher
from tests.training.interruption import run_interrupted
from tests.training.logs import differences, experiment_dict, make_log, write_log
from tests.training.logs import load as load_experiment


class TestStudentAdapter(DistillationStrategyTests):
    component = StudentAdapter
    plugin = exfm_plugins.transfer
    configs = (
        {},
        {"adds": False},
        {"head": "shared", "teacher_weight": 0.5, "hidden": [], "input": "probability"},
        {"features": ["shop", "item"], "age": True},
    )


def build(student: Student, *tasks: str, corrects: float = 0.5, **fields: object) -> StudentAdapter:
    """In float64; ``corrects``: the size of the adapter's parameters, 0 for an adapter that has learned nothing."""
    strategy = StudentAdapter(StudentAdapter.Config(teacher="fm", **fields), student.spec, teacher(*tasks)).double()
    for parameter in strategy.adapters.parameters() if corrects else ():
        torch.nn.init.normal_(parameter, std=corrects)
    return strategy


def corrected(strategy: Net, task: str, p: float, *, of_logit: bool, adds: bool = True) -> Tensor:
    """z_A of one example, from the adapter's parameters."""
    p = min(max(p, 1e-6), 1 - 1e-6)
    values = torch.tensor([log(p / (1 - p)) if of_logit else p], dtype=torch.float64)
    parameters = list(strategy.adapters[f"task_{task}"].parameters())
    for number in range(0, len(parameters), 2):
        values = parameters[number] @ values + parameters[number + 1]
        if number + 2 < len(parameters):
            values = values / (1 + (-values).exp())
    return values[0] + log(p / (1 - p)) if adds else values[0]


def step(strategy: Net, optimizer: torch.optim.Optimizer, *known: Any) -> None:
    optimizer.zero_grad()
    strategy.adapter_loss(*known).backward()
    optimizer.step()


@given(
    st.integers(1, 30),
    st.sampled_from([("click",), ("click", "buy"), ("buy", "share", "click")]),
    st.sampled_from([(), (3,), (4, 2)]),
    st.sampled_from(["logit", "probability"]),
    st.sampled_from(["own", "shared"]),
    st.booleans(),
)
def test_is_the_published_losses(
    size: int, tasks: tuple[str, ...], hidden: tuple[int, ...], read: str, head: str, adds: bool
) -> None:
    student = Student()
    extra = {"adds": adds, **({"teacher_weight": 1.5} if head == "shared" else {})}
    strategy = build(student, *tasks, hidden=hidden, input=read, head=head, weight=2.5, label_scale=1.7, **extra)
    x, supervision, labels = batch(size, tasks)
    output = student(x)
    strategy.loss(output, supervision, labels)
    for parameter in strategy.heads.parameters():
        torch.nn.init.normal_(parameter)
    found = [strategy.adapter_loss(supervision, labels).item(), strategy.loss(output, supervision, labels).item()]
    expected = [0.0, 0.0]
    for task in {"click", "buy"} & set(tasks):
        rows = [row for row in range(size) if supervision.hit[task][row]]
        linear = distilled(strategy, task)
        for row in rows:
            soft = supervision.probabilities[task][row]
            z_a = corrected(strategy, task, soft.item(), of_logit=read == "logit", adds=adds)
            expected[0] += bce(z_a, labels[task][row]).item() / len(rows)
            z_d = linear.weight[0] @ output.representation_BR[row] + linear.bias[0]
            target = (1.7 / (1 + (-z_a).exp())).clamp(max=1)
            expected[1] += 2.5 * bce(z_d, target).item() / size
            if head == "shared":
                expected[1] += 1.5 * bce(z_d, (1.7 * soft).clamp(max=1)).item() / size
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("read", ["logit", "probability"])
@pytest.mark.parametrize("hidden", [(), (16,)])
def test_starts_as_the_teacher(read: str, hidden: tuple[int, ...]) -> None:
    strategy = build(Student(), "click", corrects=0, input=read, hidden=hidden)
    p = torch.cat([torch.tensor([0.0, 1.0, 1e-3]), torch.rand(50)]).double()
    found = strategy.adapters["task_click"](p).sigmoid()
    torch.testing.assert_close(found, p.clamp(1e-6, 1 - 1e-6), rtol=1e-9, atol=0)


@pytest.mark.parametrize("head", ["own", "shared"])
def test_each_loss_reaches_its_own_parameters_alone(head: str) -> None:
    student = Student()
    strategy = build(student, "click", "buy", head=head)
    x, supervision, labels = batch(30)
    output = student(x)
    losses = {
        "adapter": strategy.adapter_loss(supervision, labels),
        "distillation": strategy.loss(output, supervision, labels),
        "labels": student.label_loss(output, labels),
    }
    parts: dict[str, list[Tensor]] = {
        "adapter": list(strategy.adapters.parameters()),
        "distillation": list(strategy.heads.parameters()),
        "serving": list(student.heads.parameters()),
        "trunk": list(student.trunk.parameters()),
    }
    reached = {name: {part for part, of in parts.items() if reaches(loss, of)} for name, loss in losses.items()}
    assert reached == {
        "adapter": {"adapter"},
        "distillation": {"distillation", "trunk"},
        "labels": {"serving", "trunk"},
    }
    owned = [parameter for group in strategy.adapter_optimizer().param_groups for parameter in group["params"]]
    assert [id(parameter) for parameter in owned] == [id(parameter) for parameter in parts["adapter"]]


def reaches(loss: Tensor, parameters: list[Tensor]) -> bool:
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
    return any(gradient.any() for gradient in found)


@pytest.mark.parametrize(("scale", "tolerance"), [(0.0, 0), (0.25, 0), (32.0, 0), (20.0, 1e-12)])
def test_gradient_scale_multiplies_the_trunks_gradient_alone(scale: float, tolerance: float) -> None:
    student = Student()
    x, supervision, labels = batch(30)
    plain, scaled = build(student, "click", "buy"), build(student, "click", "buy", gradient_scale=scale)
    scaled.load_state_dict(plain.state_dict())
    found = []
    for strategy in (plain, scaled):
        loss = strategy.loss(student(x), supervision, labels)
        head = distilled(strategy, "click").weight
        found.append(torch.autograd.grad(loss, [student.trunk.weight, head]))
    torch.testing.assert_close(found[1][0], scale * found[0][0], rtol=tolerance, atol=0)
    assert torch.equal(found[1][1], found[0][1])


@pytest.mark.parametrize("head", ["own", "shared"])
def test_a_miss_contributes_nothing_whatever_its_value(head: str) -> None:
    student = Student()
    x, supervision, labels = batch(40)
    other = {task: torch.where(supervision.hit[task], p, -9e9) for task, p in supervision.probabilities.items()}
    found = []
    for probabilities in (supervision.probabilities, other):
        torch.manual_seed(0)
        strategy = build(student, "click", "buy", head=head, label_scale="auto", weight=3)
        taught = TeacherOutput(probabilities, supervision.hit)
        optimizer = strategy.adapter_optimizer()
        step(strategy, optimizer, taught, labels)
        strategy.loss(student(x), taught, labels).backward()
        gradients = {name: p.grad for name, p in strategy.named_parameters()} | {"trunk": student.trunk.weight.grad}
        found.append(save({**strategy.state_dict(), **{f"grad.{name}": value for name, value in gradients.items()}}))
        student.zero_grad()
    assert found[0] == found[1]


def context(size: int, seed: int = 0) -> dict[str, Tensor]:
    """Tokens of width 2 of the features ``shop`` and ``item``."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, 2, generator=generator, dtype=torch.float64) for name in ("shop", "item")}


def spec_with_features(student: Student) -> StudentSpec:
    return replace(student.spec, embedding_dim=2, tables={"shop": "shops", "item": "items"})


def build_seeing(student: Student, **fields: object) -> StudentAdapter:
    config = StudentAdapter.Config(teacher="fm", **fields)
    return StudentAdapter(config, spec_with_features(student), teacher("click")).double()


def test_no_gradient_of_the_adapter_reaches_the_tokens_that_it_sees() -> None:
    student = Student(("click",))
    strategy = build_seeing(student, features=["shop"], age=True)
    for parameter in strategy.adapters.parameters():
        torch.nn.init.normal_(parameter)
    x, supervision, labels = batch(30, ("click",))
    tokens = {name: token_BD.requires_grad_() for name, token_BD in context(30).items()}
    age_s = (torch.rand(30) * 9000).requires_grad_()
    seen = replace(supervision, age_s=age_s, tokens=tokens)
    losses = [strategy.adapter_loss(seen, labels), strategy.loss(student(x), seen, labels)]
    leaves = [*tokens.values(), age_s]
    assert not any(reaches(loss, leaves) for loss in losses)
    assert reaches(losses[0], list(strategy.adapters.parameters()))


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        ({"features": ["shop"]}, {"tokens": context(30, seed=9)}),
        ({"age": True}, {"age_s": torch.full((30,), 9000.0)}),
    ],
)
def test_the_corrected_label_depends_on_what_it_sees_alone(fields: dict[str, Any], change: dict[str, Any]) -> None:
    _, supervision, _ = batch(30, ("click",))
    plain = replace(supervision, tokens=context(30), age_s=torch.full((30,), 60.0))
    unchanged = []
    for seeing in (fields, {}):
        strategy = build_seeing(Student(("click",)), **seeing)
        for parameter in strategy.adapters.parameters():
            torch.nn.init.normal_(parameter)
        both = [strategy.adapt(output).probabilities["click"] for output in (plain, replace(plain, **change))]
        unchanged.append(torch.equal(*both))
    assert unchanged == [False, True]


def test_a_bias_of_the_domain_is_removed_by_an_adapter_that_sees_it_and_by_no_other() -> None:
    """The teacher is right in both domains but for its level: 1 too high in the first, 1 too low in the second."""
    generator = torch.Generator().manual_seed(0)
    size = 6_000
    truth_B = torch.randn(size, generator=generator, dtype=torch.float64)
    domain_B = torch.randint(2, (size,), generator=generator)
    label_B = (torch.rand(size, generator=generator, dtype=torch.float64) < truth_B.sigmoid()).double()
    table_ND = 0.01 * torch.randn(2, 2, generator=generator, dtype=torch.float64)
    taught = TeacherOutput(
        {"click": (truth_B + 2.0 * domain_B - 1).sigmoid()},
        {"click": torch.ones(size, dtype=torch.bool)},
        tokens={"shop": table_ND[domain_B]},
    )
    errors = []
    for fields in ({"features": ["shop"]}, {}):
        torch.manual_seed(0)
        strategy = build_seeing(Student(("click",)), lr=0.02, **fields)
        optimizer = strategy.adapter_optimizer()
        for _ in range(300):
            step(strategy, optimizer, taught, {"click": label_B})
        error_B = strategy.adapt(taught).probabilities["click"].logit() - truth_B
        errors.append(abs((error_B[domain_B == 1].mean() - error_B[domain_B == 0].mean()).item()))
    assert errors[0] < 0.1 and errors[1] > 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ["shp"]}, "no feature 'shp' of ids; it reads shop, item. Did you mean 'shop'"),
        ({"age": True}, "age: true, but the files of teacher 'fm' have no times"),
    ],
)
def test_what_it_cannot_see_is_refused(fields: dict[str, object], message: str) -> None:
    elsewhere = replace(teacher("click"), has_age=False)
    with pytest.raises(ValueError, match=message):
        StudentAdapter(
            StudentAdapter.Config(teacher="fm", **fields), spec_with_features(Student(("click",))), elsewhere
        )


def test_an_adapter_of_no_weight_leaves_a_run_as_it_is_whatever_it_sees(tmp_path: Path, exfm_registry: Any) -> None:
    """The student predicts as its control does, so that no table has moved; and the label is corrected otherwise."""
    kinds = ("backbones", "encoders", "parallel", "sources", "transfer")
    exfm_registry.put(*(getattr(exfm_plugins, kind) for kind in kinds))
    path = write_log(tmp_path / "log", make_log(600))
    labels = []
    for name, fields in (("plain", {}), ("seeing", {"features": ["user", "item"], "age": True})):
        config = experiment_dict(path, str(tmp_path / name))
        adapter = {"name": "student_adapter", "teacher": "fm", "lr": 0.05, "weight": 0, **fields}
        config["models"]["vm"]["transfer"] = [adapter]
        results = exfm.run(load_experiment(tmp_path, config))
        entries = results["supervision"]["fm"]["vm"]["soft_labels"]
        labels += [entry["ne"] for entry in entries if entry["label"] == "corrected"]
        student, control = (results["models"][model]["tasks"]["click"]["ne"] for model in ("vm", "vm.control"))
        assert student == control
    assert len(set(labels)) == 2


def without_hits(supervision: TeacherOutput, labels: dict[str, Tensor]) -> tuple[TeacherOutput, dict[str, Tensor]]:
    nobody = {task: torch.zeros_like(hit) for task, hit in supervision.hit.items()}
    return TeacherOutput(supervision.probabilities, nobody), labels


def without_labels(supervision: TeacherOutput, labels: dict[str, Tensor]) -> tuple[TeacherOutput, dict[str, Tensor]]:
    return supervision, {}


@pytest.mark.parametrize("without", [without_hits, without_labels])
def test_the_adapter_rests_where_it_has_nothing_to_learn_from(without: Callable[..., Any]) -> None:
    """Not by a bit, although its optimizer has momentum."""
    strategy = build(Student(), "click", "buy")
    optimizer = strategy.adapter_optimizer()
    for seed in range(3):
        step(strategy, optimizer, *batch(30, seed=seed)[1:])
    before = save(strategy.state_dict())
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    step(strategy, optimizer, *without(*batch(30, seed=3)[1:]))
    assert save(strategy.state_dict()) == before
    after = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(*pair) for pair in zip(moments, after, strict=True))


def test_a_task_without_fresh_labels_keeps_the_teachers_label() -> None:
    strategy = build(Student(), "click", "buy", corrects=0)
    optimizer = strategy.adapter_optimizer()
    for seed in range(3):
        _, supervision, labels = batch(30, seed=seed)
        step(strategy, optimizer, supervision, {"click": labels["click"]})
    p = torch.rand(20, dtype=torch.float64)
    torch.testing.assert_close(strategy.adapters["task_buy"](p).sigmoid(), p, rtol=1e-9, atol=0)
    assert not torch.allclose(strategy.adapters["task_click"](p).sigmoid(), p, rtol=1e-4)


def test_the_label_scale_of_a_shared_head_is_that_of_the_teachers_mean() -> None:
    student = Student(("click",))
    strategy = build(student, "click", corrects=0.2, head="shared", label_scale="auto", weight=3, teacher_weight=0.5)
    x, supervision, _ = batch(500, ("click",))
    hit, soft = supervision.hit["click"], 0.4 * supervision.probabilities["click"]
    output = student(x)
    found = strategy.loss(output, TeacherOutput({"click": soft}, {"click": hit}), {}).item()
    alpha = 0.5 / soft[hit].mean()
    linear, expected = distilled(strategy, "click"), 0.0
    for row in range(500):
        if hit[row]:
            z_d = linear.weight[0] @ output.representation_BR[row] + linear.bias[0]
            adapted = corrected(strategy, "click", soft[row].item(), of_logit=True).sigmoid()
            for weight, label in ((0.5, soft[row]), (3, adapted)):
                expected += weight * bce(z_d, (alpha * label).clamp(max=1)).item() / 500
    assert found == pytest.approx(expected, rel=1e-9) and alpha > 1.2


def test_training_goes_on_bit_by_bit_from_a_saved_state() -> None:
    student = Student()
    fields: dict[str, Any] = {"head": "shared", "label_scale": "auto"}
    one, other = build(student, "click", "buy", **fields), build(student, "click", "buy", **fields)
    x, supervision, labels = batch(50)
    one.loss(student(x), supervision, labels)
    other.load_state_dict(load(save(one.state_dict())))
    x, supervision, labels = batch(50, seed=1)
    assert torch.equal(*(strategy.loss(student(x), supervision, labels) for strategy in (one, other)))
    assert save(one.state_dict()) == save(other.state_dict())


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_batches_are_finite(size: int) -> None:
    student = Student()
    strategy = build(student, "click", "buy", head="shared", label_scale="auto")
    x, supervision, labels = batch(size)
    step(strategy, strategy.adapter_optimizer(), supervision, labels)
    strategy.loss(student(x), supervision, labels).backward()
    assert gradient(student.trunk.weight).isfinite().all()
    assert all(value.isfinite().all() for value in strategy.state_dict().values())


def test_float32_students_learn_from_float64_supervision() -> None:
    student = Student(("click",)).float()
    shape = exfm.transfer.StudentSpec(("click",), 4, lambda: Head(4).float())
    strategy = StudentAdapter(StudentAdapter.Config(teacher="fm", label_scale="auto"), shape, teacher("click"))
    x, supervision, labels = batch(8, ("click",))
    assert strategy.loss(student(x.float()), supervision, labels).dtype == torch.float32


@pytest.mark.parametrize("wrong", [{"lr": 0}, {"hidden": [0]}, {"head": "mine"}, {"teacher_weight": 2}, {"alpha": 5}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        StudentAdapter.Config(teacher="fm", **wrong)


def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path, exfm_registry: Any) -> None:
    """Adapters, their Adam, started heads and running means are where they were."""
    kinds = ("backbones", "encoders", "parallel", "sources", "transfer")
    exfm_registry.put(*(getattr(exfm_plugins, kind) for kind in kinds))
    path = write_log(tmp_path / "log", make_log(600))
    results = []
    for name, stop_after in (("whole", None), ("interrupted", 5)):
        config = experiment_dict(path, str(tmp_path / name))
        auto = {"teacher": "fm", "label_scale": "auto"}
        config["models"]["vm"]["transfer"] = [
            {"name": "auxiliary_head", **auto},
            {"name": "student_adapter", "lr": 0.05, "head": "shared", **auto},
        ]
        results.append(run_interrupted(load_experiment(tmp_path, config), stop_after))
    whole, interrupted = results
    assert not differences(whole, interrupted)
    states = [sorted((tmp_path / name / "snapshots").rglob("*.safetensors")) for name in ("whole", "interrupted")]
    assert states[0] and [file.read_bytes() for file in states[0]] == [file.read_bytes() for file in states[1]]
