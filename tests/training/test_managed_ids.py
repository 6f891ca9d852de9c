"""Experiments whose ids are managed: predictions, resumed runs, exports, and errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import exfm
from exfm.experiment.run import build_plan
from exfm.interfaces.local_shards import whole_tensors
from exfm.learning.trainer import Trainer
from exfm.modeling.managed_ids import ManagedIds
from exfm.serving import load
from exfm.transfer.build import teacher_specs
from exfm_plugins.parallel.single.plan import Single
from tests.training.logs import DAY_US, START_US, experiment_dict, make_log, predictions, train
from tests.training.test_parallel import furthest


def config_of(log: Path, run_dir: Path, **models: Any) -> dict[str, Any]:
    """Forty users and thirty items, for whom there are sixteen rows each."""
    config = experiment_dict(str(log), str(run_dir))
    user, item, _, history = config["stream"]["source"]["features"]
    for ids in (user, item, history["fields"][0]):
        ids |= {"ids": "managed", "rows": 16}
    config["models"]["fm"]["optimizer"] = {"tables": {"name": "rowwise_adagrad"}}
    for name, section in models.items():
        config["models"][name] |= section
    return config


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log in two files, `whole`; and the first of them alone, `half`."""
    folder = tmp_path_factory.mktemp("managed")
    log = make_log(rows=600)
    middle = int(np.searchsorted(log.column("event_time").cast(pa.int64()).to_numpy(), START_US + 3 * DAY_US))
    for name, parts in (("whole", 2), ("half", 1)):
        (folder / name).mkdir()
        for number in range(parts):
            table = log.slice(0, middle) if number == 0 else log.slice(middle)
            pq.write_table(table, folder / name / f"part-{number}.parquet")
    return folder


@pytest.fixture(scope="module")
def runs(logs: Path) -> Callable[..., Path]:
    """Runs an experiment over a log, and gives its folder."""

    def run(name: str, log: str, *overrides: str) -> Path:
        path = logs / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config_of(logs / log, logs / f"run-{name}")))
        train(exfm.load_experiment(str(path), overrides))
        return logs / f"run-{name}"

    run("single", "whole")
    return run


def assert_equal(actual_dir: Path, expected_dir: Path, windows: int, far: float = 0.0) -> None:
    for arm in ("fm", "vm", "vm.control"):
        actual, expected = predictions(str(actual_dir), arm), predictions(str(expected_dir), arm)
        assert set(range(windows)) <= actual.keys()
        assert max(furthest(actual[window], expected[window]) for window in range(windows)) <= far, arm


def test_predictions_know_nothing_of_later_rows_and_a_run_that_goes_on_is_undisturbed(
    logs: Path, runs: Callable[..., Path]
) -> None:
    shutil.copytree(logs / "half", logs / "grows")
    began = runs("grows", "grows")
    assert_equal(began, logs / "run-single", 3)
    shutil.copy(logs / "whole" / "part-1.parquet", logs / "grows")
    assert_equal(runs("grows", "grows"), logs / "run-single", 6)


def test_an_export_knows_its_ids(logs: Path, runs: Callable[..., Path], exfm_cli: Any) -> None:
    config, out = str(logs / "single.yaml"), logs / "exported"
    rows = pq.read_table(logs / "whole" / "part-1.parquet").slice(0, 50).combine_chunks().to_batches()[0]
    outcome = exfm_cli("export", config, "--model", "fm", "--out", str(out), "--no-compile")
    assert outcome.status == 0, outcome.err
    assert exfm_cli("predict", config, "--model", "fm", "--out", str(logs / "predicted")).status == 0
    expected = pq.read_table(logs / "predicted")
    position = {example: index for index, example in enumerate(expected.column("example_id").to_pylist())}
    expected_N = expected.column("prediction_click").to_numpy()[
        [position[example] for example in rows["example_id"].to_pylist()]
    ]
    served = load(str(out), compiled=False).predict(rows)["click"]
    np.testing.assert_allclose(np.asarray(served), expected_N, atol=1e-5)
    description = json.loads((out / "inputs.json").read_text())
    assert description["features"][0]["ids"] == "managed" and "mix(key) >> 1" in description["hashing"]


def test_rows_that_get_another_id_start_anew(logs: Path) -> None:
    config = logs / "anew.yaml"
    config.write_text(yaml.safe_dump(config_of(logs / "whole", logs / "run-anew")))
    experiment = exfm.load_experiment(str(config))
    plan = build_plan(experiment)
    trainer = Trainer(experiment.arms[0], experiment.schema, teacher_specs(experiment), plan, 0)
    model = trainer.parallel_model
    for name, value in whole_tensors(model.table_optimizer_state_dict()).items():
        model.load_table_optimizer_state_dict(model.table_optimizer_state_dict() | {name: torch.ones_like(value)})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    model.reset_rows("table_item", torch.tensor([3, 5]), torch.tensor([12, 12]))
    states = whole_tensors(model.table_optimizer_state_dict())
    item = next(value for name, value in states.items() if "table_item" in name)
    assert item.nonzero().flatten().tolist() == [row for row in range(16) if row not in (3, 5)]
    assert all(bool(value.all()) for name, value in states.items() if "table_item" not in name)
    for name, value in trainer.model.state_dict().items():
        expected = before[name].clone()
        if "table_item" in name:
            expected[[3, 5]] = before[name][12]
        assert torch.equal(value, expected), name
    managers = [module for module in trainer.model.modules() if isinstance(module, ManagedIds)]
    assert len(managers) == 2


class Rigid(Single):
    """A plan without the optional methods."""

    name = "rigid"
    is_default = False
    resets_rows = False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel": {"name": "rigid", "device": "cpu"}},
         "models.fm: it reads a table with ids: managed, .* the parallel plan rigid cannot start rows anew"),
        ({"vm": {"transfer": [{"name": "parameter_sharing", "teacher": "fm", "parts": {"table/item": "copied"}}]}},
         "transfer.0: parameter_sharing follows a teacher row by row, and the ids of table 'user' are managed"),
        ({"rows": 15}, "ids: managed wants a table of at least 16 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_managed_is_refused(change: dict[str, Any], message: str, logs: Path) -> None:
    config = config_of(logs / "whole", logs / "run-refused", vm=change.get("vm", {}))
    config["parallel"] = change.get("parallel", {"name": "single"})
    config["stream"]["source"]["features"][0]["rows"] = change.get("rows", 16)
    path = logs / "refused.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(exfm.ConfigError, match=message):
        exfm.run(exfm.load_experiment(str(path), components=[Rigid]))
