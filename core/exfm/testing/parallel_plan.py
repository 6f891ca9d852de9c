"""Tests of the contract of parallel plans."""

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
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.testing import plan_exercise
from exfm.testing.component import ComponentTests
from exfm.testing.plan_exercise import (
    ACCUMULATED_BATCH,
    DENSE_LR,
    MOMENTUM,
    RESET_ROWS,
    ROWS,
    SOURCE_ROWS,
    STEPS,
    batch,
    exercise,
    select,
)

_TOLERANCE = 1e-5
"""Plans add up float32 gradients in another order than plain torch, so results are equal up to rounding."""


class ParallelPlanTests(ComponentTests):
    """Tests of a parallel plan; see ``exfm.testing`` for how to use them.

    torchrun imports the class in several processes, so its module must be importable.

    Attributes:
        processes: numbers of processes to test with.
        optimizers: optimizers of tables to test with, without those for which the plan differs from a single process.
    """

    interface: ClassVar[type[Component]] = ParallelPlan
    processes: ClassVar[tuple[int, ...]] = (1, 2)
    optimizers: ClassVar[tuple[str, ...]] = ("adagrad", "sgd")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrizes tests by config, number of processes and optimizer."""
        super().pytest_generate_tests(metafunc)
        if "processes" in metafunc.fixturenames:
            metafunc.parametrize("processes", self.processes)
        if "optimizer" in metafunc.fixturenames:
            metafunc.parametrize("optimizer", self.optimizers)

    @pytest.fixture
    def record(
        self, fields: Mapping[str, Any], processes: int, optimizer: str, tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, Tensor]:
        """Returns the record of the exercise, which tests with the same parameters share."""
        component: Any = self.component
        folder = tmp_path_factory.getbasetemp()
        return run_exercise(component, json.dumps(dict(fields)), processes, optimizer, folder)

    def test_trains_as_plain_torch(self, record: dict[str, Tensor], optimizer: str) -> None:
        """Losses and weights are those of ordinary modules and optimizers in a single process."""
        reference = Reference(record, optimizer)
        losses = torch.stack(list(map(reference.step, range(STEPS))))
        torch.testing.assert_close(record["losses"], losses, rtol=0, atol=_TOLERANCE)
        for name, expected in reference.weights().items():
            torch.testing.assert_close(record[f"end/weight/{name}"], expected, rtol=0, atol=_TOLERANCE, msg=name)

    def test_state_is_whole_and_has_the_models_names(self, record: dict[str, Tensor], optimizer: str) -> None:
        """The saved state is whole and has the model's names, so that any plan can resume from it."""
        expected = {name: tuple(value.shape) for name, value in plan_exercise.Probe().state_dict().items()}
        saved = {name: tuple(value.shape) for name, value in select(record, "end/weight/").items()}
        assert {name: saved.get(name) for name in expected} == expected
        elements = sum(value.numel() for value in select(record, "end/table/").values())
        assert elements == (0 if optimizer == "sgd" else sum(ROWS.values()) * plan_exercise.DIM)

    def test_training_resumes_from_the_saved_state(self, record: dict[str, Tensor]) -> None:
        """A model that loads the saved state continues as the model that saved it."""
        torch.testing.assert_close(record["resumed"], record["continued"], rtol=0, atol=_TOLERANCE)
        assert (record["continued"] - record["losses"]).abs().max() > _TOLERANCE, (
            "nothing was learned, so nothing was tested"
        )

    def test_rows_are_reset(self, record: dict[str, Tensor]) -> None:
        """Reset rows have the weights of their source rows and no optimizer state; all else is unchanged."""
        plan: Any = self.component
        if not plan.resets_rows:
            pytest.skip(f"{plan.name} does not reset rows")
        rows, source_rows = list(RESET_ROWS), list(SOURCE_ROWS)
        for name, before in select(record, "before/").items():
            expected = before.clone()
            if "table_item" in name:
                expected[rows] = before[source_rows] if name.startswith("weight/") else 0.0
                assert not torch.equal(before, expected), "nothing was to change, so nothing was tested"
            torch.testing.assert_close(record[f"reset/{name}"], expected, rtol=0, atol=0, msg=name)
        torch.testing.assert_close(record["reset_resumed"], record["reset_continued"], rtol=0, atol=_TOLERANCE)


Case = tuple[Any, str, str]
"""A plan's class, its fields as JSON, and the name of the tables' optimizer."""

_records: dict[tuple[Case, int], dict[str, Tensor]] = {}
"""Records by case and number of processes, because a start of processes takes longer than the exercise."""


def run_exercise(component: Any, fields: str, processes: int, optimizer: str, folder: Path) -> dict[str, Tensor]:
    """Exercises a plan, in this process or in processes that are started as by torchrun, and caches the record.

    Args:
        component: the plan's class.
        fields: the plan's fields, as JSON.
        processes: the number of processes.
        optimizer: the name of the tables' optimizer.
        folder: for the file of the record.
    """
    case = (component, fields, optimizer)
    if (case, processes) not in _records:
        if processes == 1:
            plan = component(component.Config.model_validate(json.loads(fields)))
            try:
                _records[case, 1] = exercise(plan, TableOptimizer.model_validate({"name": optimizer}))
            finally:
                plan.process_group.close()
        else:
            run_exercises([case], processes, folder)
    return _records[case, processes]


def run_exercises(cases: Sequence[Case], processes: int, folder: Path) -> None:
    """Exercises several plans in processes that are started once, and caches the records."""
    paths = [folder / f"exercise-{processes}-{len(_records) + number}.safetensors" for number in range(len(cases))]
    jobs: list[tuple[str, str, str, str]] = []
    for (component, fields, optimizer), path in zip(cases, paths, strict=True):
        jobs.append((f"{component.__module__}:{component.__qualname__}", fields, optimizer, str(path)))
    done = subprocess.run(
        [sys.executable, "-m", plan_exercise.__name__, str(processes), json.dumps(jobs)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    for case, path in zip(cases, paths, strict=True):
        _records[case, processes] = load_file(path)


class Reference:
    """The exercise's model in ordinary modules, trained with torch's optimizers on whole batches.

    Args:
        record: the record of the exercise, with the weights before training.
        optimizer: the name of the tables' optimizer.
    """

    def __init__(self, record: Mapping[str, Tensor], optimizer: str) -> None:
        self.model = plan_exercise.Probe()
        for name, rows in (("first", "user"), ("second", "item")):
            setattr(self.model, name, _Bags(ROWS[rows], rows))
        self.model.load_state_dict(select(record, "start/weight/"))
        tables = [*self.model.first.parameters(), *self.model.second.parameters()]
        options = TableOptimizer.model_validate({"name": optimizer})
        self.dense_optimizer = torch.optim.SGD(self.model.dense_parameters(), lr=DENSE_LR, momentum=MOMENTUM)
        self.table_optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self.table_optimizer = torch.optim.SGD(tables, lr=options.lr)
        else:
            self.table_optimizer = torch.optim.Adagrad(tables, lr=options.lr, eps=options.eps)

    def step(self, step: int) -> Tensor:
        """Trains on a step's batch, and returns the loss before the step."""
        features, label_B = batch(step)
        loss = nn.functional.binary_cross_entropy_with_logits(self.model(features).squeeze(1), label_B)
        loss.backward()  # type: ignore[no-untyped-call]
        self.table_optimizer.step()
        self.table_optimizer.zero_grad()
        # The dense gradients of this batch are added to those of the next batch.
        if step != ACCUMULATED_BATCH:
            nn.utils.clip_grad_norm_(self.model.dense_parameters(), plan_exercise.MAX_NORM)
            self.dense_optimizer.step()
            self.dense_optimizer.zero_grad()
        return loss.detach()

    def weights(self) -> dict[str, Tensor]:
        """Returns the model's state dict."""
        return self.model.state_dict()


class _Bags(nn.Module):
    """A table of mean bags, under TorchRec's names."""

    def __init__(self, rows: int, key: str) -> None:
        super().__init__()
        self.embedding_bags = nn.ModuleDict({f"table_{key}": nn.EmbeddingBag(rows, plan_exercise.DIM, mode="mean")})

    def forward(self, features: Any) -> Any:
        bags = next(iter(self.embedding_bags.values()))
        return _Values(bags(features.values(), features.offsets()[:-1].long()))


class _Values:
    """Stands in for a KeyedTensor, of which the model reads only the values."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def values(self) -> Tensor:
        return self._rows
