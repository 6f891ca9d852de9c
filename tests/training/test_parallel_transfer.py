"""Every way to transfer on several processes: students learn, follow their teacher, and look it up as in one process.

A single launch of torchrun does the runs of all plans, because processes take longer to start than to train.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import exfm
from exfm.supervision.store import Store
from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.logs import DAY_US, START_US, experiment_dict, make_log, predictions, supervision, train
from tests.training.test_parallel import EXACT, furthest

# Four processes take long to start.
pytestmark = pytest.mark.soak

STUDENTS = ("looks_up", "follows", "shares", "learns")
PLANS = ("hsdp_2d", "ddp", "hsdp", "turns")
"""Runs on four processes: each plan's, and one that another plan goes on with."""
DAYS = 3
ROWS = 150


def student(**fields: Any) -> dict[str, Any]:
    return {"backbone": {"name": "dlrm"}, "features": ["user", "item"], "embedding_dim": 8, "batch_size": 16} | fields


def config_of(log: Path, run_dir: Path) -> dict[str, Any]:
    """An FM that stores all that there is, and students that read it; a label is late, and rows have weights."""
    config = experiment_dict(str(log), str(run_dir), labels=("click", "buy"))
    config["stream"]["source"]["weight"] = "weight"
    config["stream"]["source"]["labels"][1]["delay"] = "1d"
    config["stream"]["chunk_rows"] = 18  # no multiple of four, so that chunks lie differently over the processes
    fm = config["models"]["fm"]
    fm |= {
        "batch_size": 9,
        "supervision": {
            "states": {"user": ["user", "history"], "item": ["item"]},
            "state_dim": 4,
            "rows": ["user"],
            "embedding": "float16",
            "lag": "1h",
        },
    }
    history = {"features": ["user", "item", "price", "history"], "sequence_encoder": {"name": "din"}}
    parts = {"table/user": "added", "table/item": "frozen", "sequence_encoder/history": "copied"}
    sharing = {"name": "parameter_sharing", "teacher": "fm"}
    config["models"] = {
        "fm": fm,
        "looks_up": student(
            inputs=[
                {"name": "latest_state", "teacher": "fm", "entities": ["user"]},
                {"name": "loopfm", "teacher": "fm", "entities": ["item"], "states": 3},
                {"name": "pair_embedding", "teacher": "fm"},
            ],
            tasks=["click"],
            where={"user": {"bucket": [0, 1, 2], "of": 5}},
        ),
        "follows": student(transfer=[{"name": "compact_features", "teacher": "fm"}], **{"batch_size": 5}),
        "shares": student(
            **history,
            transfer=[
                sharing | {"parts": parts | {"dense_tokens": "frozen"}},
                {"name": "direct", "teacher": "fm", "temperature": 2},
            ],
        ),
        "learns": student(
            transfer=[
                sharing | {"parts": {"table/user": "projected", "table/item": "fine_tuned"}},
                {"name": "auxiliary_head", "teacher": "fm", "label_scale": "auto", "gradient_scale": 3},
                {"name": "student_adapter", "teacher": "fm", "head": "shared", "label_scale": "auto", "lr": 1e-4},
                {"name": "representation", "teacher": "fm", "loss": "mse"},
            ],
        ),
    }
    return config


def job_of(folder: Path, name: str, *overrides: str, days: int = DAYS) -> dict[str, Any]:
    path, log = folder / f"{name}.yaml", folder / f"log-{name}"
    path.write_text(yaml.safe_dump(config_of(log, folder / name)))
    files = [[str(folder / f"day-{day}"), str(log / f"part-{day}.parquet")] for day in range(days)]
    return {"config": str(path), "overrides": list(overrides), "log": files, "evaluate": False}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the runs: on a single process, and on four."""
    folder = tmp_path_factory.mktemp("transfer")
    log = make_log(rows=2 * ROWS)
    weight = np.random.default_rng(2).integers(0, 3, log.num_rows).astype(np.float32)
    log = log.append_column("weight", pa.array(weight))
    times = log.column("event_time").cast(pa.int64()).to_numpy()
    ends = np.searchsorted(times, START_US + DAY_US * np.arange(DAYS + 1))
    for day in range(DAYS):
        pq.write_table(log.slice(ends[day], ends[day + 1] - ends[day]), folder / f"day-{day}")
    alone = job_of(folder, "alone")
    parallel_worker.place_log(alone)
    train(exfm.load_experiment(alone["config"]))
    jobs = [job_of(folder, plan, f"parallel.name={plan}") for plan in ("hsdp_2d", "ddp", "hsdp")]
    jobs.append(job_of(folder, "turns", "parallel.name=hsdp_2d", days=2))
    jobs.append(job_of(folder, "turns", "parallel={name: hsdp, replicas: 2}"))
    torchrun(parallel_worker.main, jobs, folder / "nobody-is-killed", processes=4)
    return folder


@pytest.mark.parametrize("name", PLANS)
def test_students_are_those_of_a_single_process(runs: Path, name: str) -> None:
    far: dict[str, float] = {}
    for model in ("fm", *STUDENTS):
        actual, expected = (predictions(str(runs / run), model) for run in (name, "alone"))
        assert actual.keys() == expected.keys() == set(range(DAYS))
        far[model] = max(furthest(actual[window], expected[window]) for window in expected)
    assert max(far.values()) < EXACT, far
    actual, expected = (supervision(str(runs / run), "fm") for run in (name, "alone"))
    assert max(furthest(actual[window], expected[window]) for window in expected) < EXACT


@pytest.mark.parametrize("name", PLANS)
def test_what_students_keep_of_their_teacher_is_saved_alike(runs: Path, name: str) -> None:
    for model in STUDENTS:
        for file in ("model", "training"):
            actual, expected = (_saved(runs / run, model, file) for run in (name, "alone"))
            assert actual.keys() == expected.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(actual[key], tensor, rtol=2e-3, atol=2e-3, msg=f"{model}: {key}")


def test_students_do_follow_their_teacher(runs: Path) -> None:
    followed = 0
    for model in STUDENTS:
        for key, tensor in (_saved(runs / "alone", model, "model") | _saved(runs / "alone", model, "training")).items():
            if "vectors_RK" in key:
                assert tensor.any(), f"{model}: {key}"
                followed += 1
    assert followed == 4, "the tables of latest states, of histories, and two of compact features"


def _saved(run_dir: Path, model: str, file: str) -> dict[str, torch.Tensor]:
    """Weights or training state of a model's last snapshot, whole."""
    snapshots = Store(str(run_dir)).snapshots
    snapshot = snapshots.get(model, DAYS - 1)
    return snapshots.load_whole(snapshot.weights if file == "model" else snapshot.training)
