"""What every parallel plan must hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from exfm.interfaces.component import Component
from exfm.interfaces.parallel_plan import ParallelPlan, TableOptimizer
from exfm.testing import plan_exercise
from exfm.testing.component import ComponentTests
from exfm.testing.plan_exercise import ADDS_UP, DENSE_LR, LIKE, MOMENTUM, ROWS, STARTED, STEPS, batch, exercise

_EXACT = 1e-5


class ParallelPlanTests(ComponentTests):
    """Tests of a parallel plan; see ``exfm.testing`` for how to use them.

    For more than one process torchrun imports the class by its module, so it must have one that can be imported.

    Attributes:
        processes: numbers of processes to test with.
        optimizers: optimizers of tables to test with. Leave out those with which a plan is not to train as one process.
    """

    interface: ClassVar[type[Component]] = ParallelPlan
    processes: ClassVar[tuple[int, ...]] = (1, 2)
    optimizers: ClassVar[tuple[str, ...]] = ("adagrad", "sgd")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each config, number of processes and optimizer."""
        super().pytest_generate_tests(metafunc)
        if "processes" in metafunc.fixturenames:
            metafunc.parametrize("processes", self.processes)
        if "optimizer" in metafunc.fixturenames:
            metafunc.parametrize("optimizer", self.optimizers)

    @pytest.fixture
    def found(
        self, fields: Mapping[str, Any], processes: int, optimizer: str, tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, Tensor]:
        """What the exercise found; the tests of one set of parameters share it."""
        component: Any = self.component
        folder = tmp_path_factory.getbasetemp()
        return exercised(component, json.dumps(dict(fields)), processes, optimizer, folder)

    def test_trains_as_plain_torch(self, found: dict[str, Tensor], optimizer: str) -> None:
        """The same batches give the losses and weights of ordinary modules and optimizers in one process."""
        reference = Reference(found, optimizer)
        losses = torch.stack([reference.step(step) for step in range(STEPS)])
        torch.testing.assert_close(found["losses"], losses, rtol=0, atol=_EXACT)
        for name, expected in reference.weights().items():
            torch.testing.assert_close(found[f"end/weight/{name}"], expected, rtol=0, atol=_EXACT, msg=name)

    def test_state_is_whole_and_has_the_models_names(self, found: dict[str, Tensor], optimizer: str) -> None:
        """Another plan, on any number of processes, must be able to go on from what is saved."""
        expected = {name: tuple(value.shape) for name, value in plan_exercise.Probe().state_dict().items()}
        saved = {name.removeprefix("end/weight/"): tuple(value.shape) for name, value in found.items()}
        assert {name: saved.get(name) for name in expected} == expected
        elements = sum(value.numel() for name, value in found.items() if name.startswith("end/table/"))
        assert elements == (0 if optimizer == "sgd" else sum(ROWS.values()) * plan_exercise.DIM)

    def test_put_back_it_goes_on(self, found: dict[str, Tensor]) -> None:
        """A model that is given the saved state trains on as the one that it comes from."""
        torch.testing.assert_close(found["again"], found["on"], rtol=0, atol=_EXACT)
        assert (found["on"] - found["losses"]).abs().max() > _EXACT, "nothing was learned, so nothing was tested"

    def test_rows_start_anew(self, found: dict[str, Tensor]) -> None:
        """Rows that get another id take other rows' weights and forget their state, wherever they lie; no more."""
        plan: Any = self.component
        if not plan.resets_rows:
            pytest.skip(f"{plan.name} does not reset rows")
        prefix, rows = "before/", list(STARTED)
        for name, before in ((key.removeprefix(prefix), one) for key, one in found.items() if key.startswith(prefix)):
            expected = before.clone()
            if "table_item" in name:
                expected[rows] = before[list(LIKE)] if name.startswith("weight/") else 0.0
                assert not torch.equal(before, expected), "nothing was to change, so nothing was tested"
            torch.testing.assert_close(found[f"started/{name}"], expected, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(found["started_again"], found["started_on"], rtol=0, atol=_EXACT)


Case = tuple[Any, str, str]
"""A plan's class, its fields as JSON, and the optimizer of tables by name."""

_found: dict[tuple[Case, int], dict[str, Tensor]] = {}


def exercised(component: Any, fields: str, processes: int, optimizer: str, folder: Path) -> dict[str, Tensor]:
    """What the exercise finds with a plan: here, or in processes that torchrun starts. Each case is done once.

    Args:
        fields: the plan's, as JSON.
        optimizer: of tables, by name.
        folder: for the result.
    """
    case = (component, fields, optimizer)
    if (case, processes) not in _found:
        if processes == 1:
            plan = component(component.Config.model_validate(json.loads(fields)))
            try:
                _found[case, 1] = exercise(plan, TableOptimizer.model_validate({"name": optimizer}))
            finally:
                plan.process_group.close()
        else:
            exercise_together([case], processes, folder)
    return _found[case, processes]


def exercise_together(cases: Sequence[Case], processes: int, folder: Path) -> None:
    """Does several cases in processes that are started once, as they take longer to start than to train."""
    out = [folder / f"exercise-{processes}-{len(_found) + number}.safetensors" for number in range(len(cases))]
    jobs = [
        (f"{component.__module__}:{component.__qualname__}", fields, optimizer, str(path))
        for (component, fields, optimizer), path in zip(cases, out, strict=True)
    ]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*launch, "-m", plan_exercise.__name__, json.dumps(jobs)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    _found.update({(case, processes): load_file(path) for case, path in zip(cases, out, strict=True)})


class Reference:
    """The exercise's model in ordinary modules, trained with torch's optimizers on whole batches.

    Args:
        found: what the exercise has found; training begins with the same weights.
        optimizer: of tables, by name.
    """

    def __init__(self, found: Mapping[str, Tensor], optimizer: str) -> None:
        self.model = plan_exercise.Probe()
        for name, rows in (("first", "user"), ("second", "item")):
            setattr(self.model, name, _Bags(ROWS[rows], rows))
        prefix = "start/weight/"
        start = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
        self.model.load_state_dict(start)
        tables = [*self.model.first.parameters(), *self.model.second.parameters()]
        options = TableOptimizer.model_validate({"name": optimizer})
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.SGD(self.model.dense_parameters(), lr=DENSE_LR, momentum=MOMENTUM),
            torch.optim.SGD(tables, lr=options.lr)
            if optimizer == "sgd"
            else torch.optim.Adagrad(tables, lr=options.lr, eps=options.eps),
        ]

    def step(self, step: int) -> Tensor:
        """The loss of a step's batch, before the step."""
        features, label_B = batch(step)
        loss = nn.functional.binary_cross_entropy_with_logits(self.model(features).squeeze(1), label_B)
        loss.backward()  # type: ignore[no-untyped-call]
        dense, tables = self.optimizers
        for optimizer in (tables,) if step == ADDS_UP else (tables, dense):
            optimizer.step()
            optimizer.zero_grad()
        return loss.detach()

    def weights(self) -> dict[str, Tensor]:
        """Its state dict."""
        return self.model.state_dict()


class _Bags(nn.Module):
    """One table of mean bags, under TorchRec's names."""

    def __init__(self, rows: int, key: str) -> None:
        super().__init__()
        self.embedding_bags = nn.ModuleDict({f"table_{key}": nn.EmbeddingBag(rows, plan_exercise.DIM, mode="mean")})

    def forward(self, features: Any) -> Any:
        bags = next(iter(self.embedding_bags.values()))
        return _Values(bags(features.values(), features.offsets()[:-1].long()))


class _Values:
    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def values(self) -> Tensor:
        return self._rows
