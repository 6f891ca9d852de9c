"""`single`, `ddp`, `hsdp` and `hsdp_2d` against plain torch, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrec import KeyedJaggedTensor

import exfm
import exfm_plugins.ddp
import exfm_plugins.hsdp
import exfm_plugins.hsdp_2d
import exfm_plugins.single
from exfm.testing import ParallelPlanTests
from exfm.testing.plan_exercise import DIM, Probe
from exfm_plugins.ddp.plan import Ddp
from exfm_plugins.hsdp.plan import Hsdp
from exfm_plugins.hsdp_2d.plan import Hsdp2d, moment_scaled
from exfm_plugins.single.plan import Single


class TestSingle(ParallelPlanTests):
    component = Single
    plugin = exfm_plugins.single
    configs = ({"device": "cpu"},)
    processes = (1,)


class TestDdp(ParallelPlanTests):
    component = Ddp
    plugin = exfm_plugins.ddp
    configs = ({"device": "cpu"},)
    optimizers = ("adagrad",)


class TestHsdp(ParallelPlanTests):
    component = Hsdp
    plugin = exfm_plugins.hsdp
    configs = ({"device": "cpu"},)
    processes = (1,)


class TestHsdp2d(ParallelPlanTests):
    component = Hsdp2d
    plugin = exfm_plugins.hsdp_2d
    configs = ({"device": "cpu"}, {"device": "cpu", "tables": {"item": {"sharding": ["table_wise"]}}})
    processes = (1,)


class TestReplicasOfHsdp2d(ParallelPlanTests):
    component = Hsdp2d
    configs = ({"device": "cpu", "replicas": 2},)
    processes = (2,)
    optimizers = ("sgd",)


REFUSED: list[tuple[type[exfm.ParallelPlan], dict[str, Any], str]] = [
    (Hsdp, {"replicas": 3}, r"hsdp.replicas: 1 processes do not form 3 equal groups; allowed: 1"),
    (Hsdp2d, {"communication": "fp8"}, "fp8 needs GPUs; allowed on a CPU: fp32, fp16, bf16"),
    (Hsdp2d, {"tables": {"user": {"sharding": ["row_wise"]}}}, "tables.user.sharding: row_wise does not work on cpu"),
]


@pytest.mark.parametrize(("plan", "fields", "message"), REFUSED)
def test_what_cannot_be_done_is_refused(plan: type[exfm.ParallelPlan], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(plan.Config.model_validate({"device": "cpu", **fields}))


@pytest.mark.parametrize("name", ["adagrad", "rowwise_adagrad", "sgd"])
def test_moments_are_scaled_as_published(name: str) -> None:
    """Some steps with known gradients, against ``lr g / (sqrt(v / c) + eps)`` written out."""
    tables = exfm.TableOptimizer.model_validate({"name": name, "lr": 0.3, "eps": 0.2})
    model = Single(Single.Config(device="cpu")).apply(Probe(), moment_scaled(tables, 4))
    assert isinstance(model, Probe)
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
