"""A representation per task, through the whole model: which head reads it, and that all else reads the mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import exfm
from exfm.interfaces.trunk import TrunkRunner
from exfm.modeling.cost import flops_by_section
from exfm.parallel import CpuTrunkRunner
from tests.modeling.cases import EVERYTHING, random_batch, schema_of
from tests.modeling.test_ranking_model import build
from tests.serving.test_captured_graph import check
from tests.training.logs import experiment_dict, load, make_log, write_log

SCHEMA = schema_of(*EVERYTHING)
BACKBONES: dict[str, dict[str, Any]] = {
    "mmoe": {"name": "mmoe", "experts": 2, "expert": {"name": "mlp", "hidden": [6]}},
    "ple": {"name": "ple", "levels": 2, "hidden": [6]},
}


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_a_head_reads_its_tasks_representation_and_all_else_the_mean(backbone: dict[str, Any]) -> None:
    model, batch = build({"backbone": backbone}), random_batch(SCHEMA, 9)
    batch = model.narrow(batch)
    with torch.no_grad():
        output = model(batch)
        tokens_BND, _ = model.featurizer(batch)
        representation_BTR = model.backbone(tokens_BND, {})
    assert representation_BTR.shape == (9, 2, 6)
    assert torch.equal(output.representation_BR, representation_BTR.mean(1))
    for number, task in enumerate(("click", "buy")):
        assert torch.equal(output.logits[task], model.heads[f"task_{task}"](representation_BTR[:, number]))


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_a_tasks_loss_moves_no_gate_and_no_head_of_another(backbone: dict[str, Any]) -> None:
    model = build({"backbone": backbone})
    model(model.narrow(random_batch(SCHEMA, 64))).logits["buy"].square().mean().backward()
    moved = [name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()]
    heads = {name.split(".")[1] for name in moved if name.startswith("heads.")}
    gates = {name for name in moved if ".gates." in name}
    assert heads == {"task_buy"}
    assert gates and all(".task_buy." in name or ".gates.1." in name for name in gates)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_micro_batches_and_threads_give_the_same(backbone: dict[str, Any]) -> None:
    batch, outputs = random_batch(SCHEMA, 1_300), []
    for runner in (TrunkRunner(), CpuTrunkRunner(1), CpuTrunkRunner(2)):
        model = build({"backbone": backbone})
        with runner.training_step(1_300) as run_trunk:
            output = model(model.narrow(batch), run_trunk)
        outputs.append(torch.stack([*output.logits.values(), output.representation_BR.sum(1)]).detach())
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
def test_its_export_gives_the_same(backbone: dict[str, Any]) -> None:
    check({"backbone": backbone}, "user", "price", "item", "history")


def test_flops_count_experts_and_gates() -> None:
    model, batch = build({"backbone": BACKBONES["mmoe"]}), random_batch(SCHEMA, 8)
    width = len(model.featurizer.token_names) * 8
    experts, gates = 2 * 2 * width * 6, 2 * 2 * 2 * (width + 6)
    flops = flops_by_section(model, model.narrow(batch))
    assert (flops["backbone"], flops["heads"]) == (experts + gates, 2 * 2 * 6)


def test_as_teacher_and_student_of_every_transfer(tmp_path: Path) -> None:
    """Stored embeddings and strategies read the mean over the tasks."""
    config = experiment_dict(write_log(tmp_path / "log", make_log(600)), str(tmp_path / "run"), labels=("click", "buy"))
    config["stream"]["window"] = "3d"
    models = config["models"]
    models["fm"] |= {"backbone": BACKBONES["mmoe"], "supervision": {"embedding": "float16"}}
    transfers = ("auxiliary_head", "student_adapter", "representation", "direct")
    models["vm"] |= {"backbone": BACKBONES["ple"], "transfer": [{"name": name, "teacher": "fm"} for name in transfers]}
    results = exfm.run(load(tmp_path, config))
    assert {(entry["model"], entry["task"]) for entry in results["gains"]} == {("vm", "click"), ("vm", "buy")}
    for model in results["models"].values():
        assert all(0 < task["ne"] < 2 for task in model["tasks"].values())
