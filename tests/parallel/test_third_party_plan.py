"""A parallel plan of a third party is made of public names, and trains as the built-in plans do."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

import exfm
import exfm.parallel
from exfm.testing import ParallelPlanTests
from tests.parallel import third_party_plan
from tests.parallel.third_party_plan import OneByOne, Renamed, Unfused
from tests.training.logs import experiment_dict, make_log, write_log

CPU = {"device": "cpu"}


class TestOneByOne(ParallelPlanTests):
    component = OneByOne
    configs = (CPU,)
    processes = (2,)
    optimizers = ("adagrad",)


class TestRenamed(ParallelPlanTests):
    component = Renamed
    configs = (CPU,)
    processes = (1,)


class TestUnfused(ParallelPlanTests):
    component = Unfused
    processes = (1,)
    optimizers = ("adagrad",)


def test_they_need_no_private_import() -> None:
    tree = ast.parse(Path(third_party_plan.__file__).read_text())
    imports = {node.module: node.names for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    ours = {module for module in imports if module.partition(".")[0] in ("exfm", "exfm_plugins")}
    assert ours == {"exfm.parallel"}
    assert {alias.name for alias in imports["exfm.parallel"]} <= set(exfm.parallel.__all__)


@pytest.mark.parametrize("name", exfm.parallel.__all__)
def test_what_is_exported_is_documented(name: str) -> None:
    exported = getattr(importlib.import_module("exfm.parallel"), name)
    assert isinstance(exported, int) or exported.__doc__


def predictions(folder: Path, log: str, plan: str) -> list[float]:
    """Every prediction of a run under a plan, in the order of the stream."""
    run_dir = folder / plan
    config = experiment_dict(log, str(run_dir)) | {"parallel": {"name": plan}}
    del config["models"]["fm"]["sequence_encoder"]
    path = folder / f"{plan}.yaml"
    path.write_text(yaml.safe_dump(config))
    exfm.run(exfm.load_experiment(str(path), components=[Renamed, Unfused]))
    files = sorted((run_dir / "predictions").rglob("*.parquet"))
    assert files
    return [value for file in files for value in pq.read_table(file)["prediction_click"].to_pylist()]


def test_an_experiment_trains_under_them_as_under_the_default(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_log(rows=900))
    expected, renamed, unfused = (predictions(tmp_path, log, name) for name in ("single", "renamed", "unfused"))
    assert renamed == expected
    # FBGEMM adds up the gradients of a row in another order than torch.
    assert unfused != expected
    assert unfused == pytest.approx(expected, rel=1e-3)
