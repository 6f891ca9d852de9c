"""`single`, `ddp`, `hsdp` and `hsdp_2d` against plain torch, and the configs that they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

import exfm
import exfm_plugins.parallel
from exfm.testing import ParallelPlanTests
from exfm.testing.parallel_plan import Reference, run_exercise, run_exercises
from exfm.testing.plan_exercise import (
    ACCUMULATED_BATCH,
    DENSE_LR,
    DIM,
    MAX_NORM,
    MOMENTUM,
    SIZES,
    STEPS,
    Probe,
    batch,
)
from exfm_plugins.parallel.ddp.plan import Ddp
from exfm_plugins.parallel.hsdp.plan import Hsdp
from exfm_plugins.parallel.hsdp_2d.placement import Placement, TableConstraint
from exfm_plugins.parallel.hsdp_2d.plan import Hsdp2d, moment_scaled
from exfm_plugins.parallel.single.plan import Single

CPU = {"device": "cpu"}
REPLICAS = {"device": "cpu", "replicas": 2}


@pytest.fixture(scope="module", autouse=True)
def exercised_together(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Runs every exercise of two processes in processes that are started once."""
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (Ddp, CPU, "adagrad"),
        (Hsdp, CPU, "adagrad"),
        *((Hsdp2d, REPLICAS, optimizer) for optimizer in ("sgd", "adagrad", "rowwise_adagrad")),
    ]
    folder = tmp_path_factory.getbasetemp()
    run_exercises([(plan, json.dumps(fields), optimizer) for plan, fields, optimizer in cases], 2, folder)


class TestSingle(ParallelPlanTests):
    component = Single
    plugin = exfm_plugins.parallel
    configs = ({"device": "cpu"},)
    processes = (1,)


class TestDdp(ParallelPlanTests):
    component = Ddp
    plugin = exfm_plugins.parallel
    configs = (CPU,)
    optimizers = ("adagrad",)


class TestHsdp(ParallelPlanTests):
    component = Hsdp
    plugin = exfm_plugins.parallel
    configs = (CPU,)
    processes = (2,)
    optimizers = ("adagrad",)


class TestHsdp2d(ParallelPlanTests):
    component = Hsdp2d
    plugin = exfm_plugins.parallel
    configs = ({"device": "cpu"}, {"device": "cpu", "tables": {"item": {"sharding": ["table_wise"]}}})
    processes = (1,)


class TestReplicasOfHsdp2d(ParallelPlanTests):
    component = Hsdp2d
    configs = (REPLICAS,)
    processes = (2,)
    optimizers = ("sgd",)


GROUPS = 2


@pytest.mark.parametrize("optimizer", ["adagrad", "rowwise_adagrad"])
def test_replicas_learn_as_published(optimizer: str, tmp_path: Path) -> None:
    """Two groups of a process each, written out: each steps its tables with the mean gradient of its rows and
    ``lr g / (sqrt(v / 2) + eps)``, then weights and squares are averaged."""
    record = run_exercise(Hsdp2d, json.dumps(REPLICAS), GROUPS, optimizer, tmp_path)
    options = exfm.parallel.TableOptimizer.model_validate({"name": optimizer})
    models = [Reference(record, "sgd").model for _ in range(GROUPS)]
    for model in models[1:]:
        model.backbone, model.head = models[0].backbone, models[0].head
    dense = torch.optim.SGD(models[0].dense_parameters(), lr=DENSE_LR, momentum=MOMENTUM)
    tables = [[*model.first.parameters(), *model.second.parameters()] for model in models]
    squares = [torch.zeros_like(table) for table in tables[0]]
    losses = []
    for step in range(STEPS):
        label_B, size = batch(step)[1], SIZES[step]
        logit_B = torch.zeros(size)
        for group, model in enumerate(models):
            rows = torch.arange(group, size, GROUPS)
            if rows.numel():
                logit_B = logit_B.index_add(0, rows, model(batch(step, rows)[0]).squeeze(1))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit_B, label_B)
        losses.append(loss.detach())
        loss.backward()
        for replica in tables:
            for table in replica:
                table.grad = torch.zeros_like(table) if table.grad is None else table.grad * GROUPS
        average(tables, squares, options)
        if step != ACCUMULATED_BATCH:
            torch.nn.utils.clip_grad_norm_(models[0].dense_parameters(), MAX_NORM)
            dense.step()
            dense.zero_grad()
    torch.testing.assert_close(record["losses"], torch.stack(losses), rtol=0, atol=1e-5)
    for name, expected in models[0].state_dict().items():
        torch.testing.assert_close(record[f"end/weight/{name}"], expected, rtol=0, atol=1e-5, msg=name)
    saved = [value for name, value in record.items() if name.startswith("end/table/")]
    for square in squares:
        expected = square.mean(dim=1) if optimizer == "rowwise_adagrad" else square
        equal = [state.shape == expected.shape and torch.allclose(state, expected, atol=1e-5) for state in saved]
        assert any(equal)


@torch.no_grad()
def average(
    tables: list[list[torch.nn.Parameter]], squares: list[Tensor], options: exfm.parallel.TableOptimizer
) -> None:
    """Steps all tables as published, in place."""
    for number, replicas in enumerate(zip(*tables, strict=True)):
        after, sums = [], []
        for table in replicas:
            assert table.grad is not None
            square = table.grad.square()
            if options.name == "rowwise_adagrad":
                square = square.mean(dim=1, keepdim=True).expand_as(square)
            sums.append(squares[number] + square)
            after.append(table - options.lr * table.grad / ((sums[-1] / GROUPS).sqrt() + options.eps))
            table.grad = None
        squares[number] = torch.stack(sums).mean(dim=0)
        for table in replicas:
            table.copy_(torch.stack(after).mean(dim=0))


REFUSED: list[tuple[type[exfm.ParallelPlan], dict[str, Any], str]] = [
    (Hsdp, {"replicas": 3}, r"hsdp.replicas: 1 processes do not form 3 equal groups; allowed: 1"),
    (Hsdp2d, {"communication": "fp8"}, "fp8 needs GPUs; allowed on a CPU: fp32, fp16, bf16"),
    (Hsdp2d, {"tables": {"user": {"sharding": ["row_wise"]}}}, "tables.user.sharding: row_wise does not work on cpu"),
]


@pytest.mark.parametrize(("plan", "fields", "message"), REFUSED)
def test_what_cannot_be_done_is_refused(plan: type[exfm.ParallelPlan], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(plan.Config.model_validate({"device": "cpu", **fields}))


@pytest.mark.parametrize("per_machine", [8, 2])
def test_shards_are_named_after_the_devices_of_their_group(per_machine: int) -> None:
    """The second of two groups of four, on GPUs that need not exist."""
    cluster, by_rows = exfm.parallel.Cluster(8, per_machine, None), TableConstraint(sharding=("row_wise",))
    placement = Placement(exfm.parallel.ProcessGroup(), 4, 4, torch.device("cuda"), {}, by_rows, cluster)
    plans = placement.plan(Probe(), EmbeddingBagCollectionSharder(), "sgd")
    for tables in plans.values():
        for sharding in tables.values():
            devices = [str(shard.placement) for shard in sharding.sharding_spec.shards]
            assert devices == [f"rank:{rank}/cuda:{rank % per_machine}" for rank in range(4, 8)]


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "sgd"])
def test_moments_are_scaled_as_published(name: str) -> None:
    """Some steps with known gradients, against ``lr g / (sqrt(v / c) + eps)`` written out."""
    tables = exfm.parallel.TableOptimizer.model_validate({"name": name, "lr": 0.3, "eps": 0.2})
    model = Probe()
    Single(Single.Config(device="cpu")).parallelize(model, moment_scaled(tables, 4))
    weight = model.first.embedding_bags["table_user"].weight
    row = KeyedJaggedTensor(keys=["user"], values=torch.tensor([3]), lengths=torch.ones(1, dtype=torch.int32))
    expected, squares = weight[3].detach().clone(), torch.zeros(DIM)
    for gradient in torch.randn(5, DIM, generator=torch.Generator().manual_seed(0)):
        (model.first(row).values()[0] * gradient).sum().backward()
        square = gradient.square()
        squares += square.mean() if name == "rowwise_adagrad" else square
        expected -= 0.3 * gradient / (1.0 if name == "sgd" else (squares / 4).sqrt() + 0.2)
    torch.testing.assert_close(weight[3].detach(), expected)


def test_one_process_does_not_do_for_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="single computes in one process, and 4 were started"):
        Single(Single.Config(device="cpu"))
