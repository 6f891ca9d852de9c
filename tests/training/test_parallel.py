"""Several processes: they predict, teach, save and report as a single process does.

Two launches of torchrun do all runs, and a third those of the campaign, one after the other: processes take longer to
start than to train.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from torch import Tensor

import exfm
from exfm.distributed.chunk_exchange import check_sharding
from exfm.supervision.store import Store
from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.logs import DAY_US, START_US, experiment_dict, make_log, predictions, supervision, train
from tests.training.parallel_worker import place_log

ARMS = ("fm", "half", "late", "vm")
SGD = [f"models.{model}.optimizer.tables={{name: sgd, lr: 0.5}}" for model in ARMS]
GROWN = "stream.source.features.0.rows=192"
HALVES = "{sharding: [column_wise], columns: 4}"
DAYS = 4
FEW = 3  # rows of the third day, fewer than processes
UNEVALUATED: dict[str, Any] = {"evaluate": False}
FOLDERS = ("supervision", "predictions")
FM_ALONE: dict[str, Any] = {"models": ("fm",), "evaluate": False}
"""For runs of which the FM's predictions are compared, which depend on no other model."""
EXACT, HALF = 1e-5, 0.05  # bfloat16 rounding depends on the rows that are multiplied together


def config_of(log: str, run_dir: Path) -> dict[str, Any]:
    """An FM that teaches as it trains, a model that teaches a day later, and a VM that few rows reach.

    Thirty items take turns in sixteen rows of their own; users are hashed. Prices and vectors may be missing, and tags
    have weights.
    """
    config = experiment_dict(log, str(run_dir), labels=("click", "buy"))
    _, item, price, history = config["stream"]["source"]["features"]
    price["missing"] = "mean"
    config["stream"]["source"]["features"] += [
        {"name": "tags", "kind": "multi_valued", "rows": 16, "weights": "tag_weights"},
        {"name": "text", "kind": "vector", "width": 4},
        {"name": "price_range", "kind": "bucketized", "column": "price", "boundaries": [2, 4]},
        {"name": "user_price", "kind": "crossed", "of": ["user", "price_range"], "rows": 32},
    ]
    for ids in (item, history["fields"][0]):
        ids |= {"ids": "managed", "rows": 24, "eviction": "lfu"}
    config["stream"]["chunk_rows"] = 18  # no multiple of four, so that chunks lie differently over the processes
    config["models"]["fm"] |= {
        "batch_size": 18,
        "supervision": {
            "embedding": "float16",
            "embedding_dim": 8,
            "states": {"user": {"from": "representation"}, "item": {"from": "layers.0"}},
        },
        "activation_checkpointing": True,
        "optimizer": {
            "dense": {
                "accumulate": 2,
                "warmup": 3,
                "schedule": {"name": "linear", "steps": 6},
                "clip_norm": 0.3,
                "ema": 0.9,
            }
        },
    }
    small = {"features": ["user", "item", "price"], "embedding_dim": 8, "batch_size": 16}
    # Rounded gradients change signs, all that AdaGrad's first step of a row depends on: so no rows that start anew.
    config["models"]["half"] = small | {
        "features": ["user", "price"],
        "backbone": {"name": "wukong", "layers": 1},
        "batch_size": 18,
        "precision": "bf16",
    }
    config["models"]["late"] = small | {"backbone": {"name": "dlrm"}, "supervision": {"delay": "1d"}}
    config["models"]["vm"] |= {
        "control": False,
        "batch_size": 8,
        "epochs": {"count": 2, "until": "2023-11-16"},  # the first day twice
        "where": {"user": {"bucket": [0, 1], "of": 5}},
        "transfer": [
            {"name": "auxiliary_head", "teacher": "late", "label_scale": "auto"},
            {
                "name": "student_adapter",
                "teacher": "fm",
                "tasks": {"click": "click"},
                "features": ["item", "user"],
                "age": True,
                # A tenth of the default: tokens differ by rounding, which the steps of Adam enlarge.
                "lr": 1e-4,
            },
            {"name": "representation", "teacher": "fm", "loss": "contrastive"},
        ],
    }
    return config


@dataclass
class Runs:
    """Runs over the same log in the same folder."""

    folder: Path

    def run_dir(self, name: str) -> Path:
        return self.folder / name

    def job(
        self, name: str, *overrides: str, days: int = DAYS, log: str = "", models: Sequence[str] = ARMS, **more: Any
    ) -> dict[str, Any]:
        """A job that begins or continues a run over the first days. ``log``: the run whose log it reads, if another."""
        path, log_folder = self.folder / f"{name}.yaml", self.folder / f"log-{log or name}"
        config = config_of(str(log_folder), self.run_dir(name))
        config["models"] = {model: config["models"][model] for model in models}
        path.write_text(yaml.safe_dump(config))
        files = [[str(self.folder / f"day-{day}"), str(log_folder / f"part-{day}.parquet")] for day in range(days)]
        return {"config": str(path), "overrides": list(overrides), "log": files, **more}

    def here(self, job: dict[str, Any]) -> None:
        """Does a job in this process alone."""
        place_log(job)
        (exfm.run if job.get("evaluate", True) else train)(exfm.load_experiment(job["config"], job["overrides"]))

    def copied(self, name: str, copy: str) -> None:
        """Copies a stopped run, to go on with it under another name."""
        shutil.copytree(self.run_dir(name), self.run_dir(copy))

    def without_student(self, name: str, copy: str) -> None:
        """Copies a run, and leaves the VM's part out."""
        self.copied(name, copy)
        for folder in ("commits/train", "predictions", "snapshots"):
            shutil.rmtree(self.run_dir(copy) / folder / "vm")


def write_days(folder: Path) -> None:
    """A file for each day; of the third day it has a few rows only."""
    table = make_log(rows=169)
    random = np.random.default_rng(1)
    price = pa.array(table["price"].to_numpy(), mask=random.random(169) < 0.3)
    tags = [random.integers(0, 9, length).tolist() for length in random.integers(0, 4, 169)]
    weights = [random.integers(0, 3, len(ids)).tolist() for ids in tags]
    texts = [None if number % 5 == 0 else random.normal(size=4).tolist() for number in range(169)]
    table = table.set_column(table.schema.get_field_index("price"), "price", price)
    for name, column in (("tags", tags), ("tag_weights", weights), ("text", texts)):
        table = table.append_column(name, pa.array(column))
    times = table.column("event_time").cast(pa.int64()).to_numpy()
    ends = np.searchsorted(times, START_US + DAY_US * np.arange(DAYS + 1))
    for day in range(DAYS):
        rows = table.slice(ends[day], FEW if day == 2 else ends[day + 1] - ends[day])
        pq.write_table(rows, folder / f"day-{day}")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All of them: each plan's on four processes, and a run that plans and numbers of processes take in turn."""
    with pytest.MonkeyPatch.context() as patch:
        parallel_worker.save_deltas(patch)
        return do_all(Runs(tmp_path_factory.mktemp("parallel")))


@pytest.fixture(scope="module")
def replicated(runs: Runs) -> Runs:
    """Besides, for the campaign: replicas that are averaged now and then, plain SGD, and rows that travel rounded."""
    runs.here(runs.job("sgd", *SGD))
    often = "parallel={name: hsdp_2d, replicas: 2, sync_every: 3}"
    rounded = "parallel={name: hsdp_2d, communication: fp16, gradients: bf16}"
    four = [
        runs.job("hsdp_2d_sgd", "parallel={name: hsdp_2d, replicas: 2}", *SGD),
        runs.job("often", often, days=2, **FM_ALONE),
        runs.job("often_full", often, "models.fm.keep.full_snapshot_every=1", days=2, **FM_ALONE),
        runs.job("often_stopped", often, days=1, **FM_ALONE),
        runs.job("often_stopped", often, days=2, **FM_ALONE),
        runs.job("rounded", rounded, days=1, **FM_ALONE),
    ]
    with pytest.MonkeyPatch.context() as patch:
        parallel_worker.save_deltas(patch)
        torchrun(parallel_worker.main, four, runs.folder / "killed-of-the-replicated", processes=4)
    return runs


def do_all(all_runs: Runs) -> Runs:
    """Does all jobs; snapshots are deltas where they can be."""
    write_days(all_runs.folder)
    all_runs.here(all_runs.job("single"))
    all_runs.here(all_runs.job("turns", days=1, **UNEVALUATED))
    four = [
        all_runs.job("hsdp", "parallel={name: hsdp, replicas: 2}"),
        all_runs.job("hsdp_2d", f"parallel={{name: hsdp_2d, tables: {{user: {HALVES}, item: {HALVES}}}}}"),
        all_runs.job("turns", "parallel.name=hsdp_2d", days=2, **UNEVALUATED),
    ]
    torchrun(parallel_worker.main, four, all_runs.folder / "killed-of-four", processes=4)
    for copy in ("turns_grown", "turns_grown_here"):
        all_runs.copied("turns", copy)
    for copy in ("student", "student_of_two"):
        all_runs.without_student("hsdp_2d", copy)
    all_runs.copied("hsdp_2d", "cut")
    (all_runs.run_dir("cut") / "commits" / "train" / "fm" / f"{DAYS - 1:06d}.json").unlink()
    two = [
        all_runs.job("killed", "parallel.name=ddp", "save_in_background=true", die_after=7),
        all_runs.job("turns", "parallel={name: hsdp, replicas: 1}", days=3, **UNEVALUATED),
        all_runs.job("turns_grown", "parallel.name=hsdp_2d", GROWN, log="turns"),
        all_runs.job("student_of_two", "parallel.name=ddp", log="hsdp_2d", **UNEVALUATED),
    ]
    torchrun(parallel_worker.main, two, all_runs.folder / "killed-of-two", processes=2, restarts=1)
    assert (all_runs.folder / "killed-of-two").exists(), "no process was killed"
    all_runs.here(all_runs.job("turns"))
    all_runs.here(all_runs.job("turns_grown_here", GROWN, log="turns"))
    all_runs.here(all_runs.job("student", log="hsdp_2d", **UNEVALUATED))
    all_runs.here(all_runs.job("cut", log="hsdp_2d"))
    return all_runs


def furthest(actual: pa.Table, expected: pa.Table) -> float:
    """The furthest two tables' numbers are apart; everything else must be equal, and in the same order."""
    assert actual.schema.equals(expected.schema)
    far = 0.0
    for name in expected.column_names:
        left, right = actual.column(name), expected.column(name)
        if pa.types.is_floating(left.type):
            ours, theirs = left.to_numpy(), right.to_numpy()
            assert np.array_equal(np.isnan(ours), np.isnan(theirs)), name
            far = max(far, float(np.nanmax(np.abs(ours - theirs), initial=0.0)))
        elif pa.types.is_fixed_size_list(left.type):
            ours, theirs = (np.concatenate([chunk.flatten() for chunk in vectors.chunks]) for vectors in (left, right))
            assert np.allclose(ours.astype(float), theirs.astype(float), rtol=2e-3, atol=1e-3), name  # float16
        elif name != "snapshot":
            assert left.equals(right), name
    return far


def assert_same(runs: Runs, name: str, expected: str = "single") -> None:
    """The same rows, predictions to 1e-5, and the same figures, as the run it is compared with."""
    left, right = runs.run_dir(name), runs.run_dir(expected)
    for arm in ARMS:
        tables, expected_tables = predictions(str(left), arm), predictions(str(right), arm)
        assert tables.keys() == expected_tables.keys()
        far = max(furthest(tables[window], expected_tables[window]) for window in expected_tables)
        assert far < (HALF if arm == "half" else EXACT), (arm, far)
    for teacher in ("fm", "late"):
        tables, expected_tables = supervision(str(left), teacher), supervision(str(right), teacher)
        assert max(furthest(tables[window], expected_tables[window]) for window in expected_tables) < EXACT, teacher
    results = [json.loads((folder / "results.json").read_text()) for folder in (left, right)]
    assert far_figures(*results) == []


LOOSE = ("time", "train_examples_per_second", "flops_per_example", "interval95", "half")


def far_figures(actual: Any, expected: Any, path: str = "") -> list[str]:
    """Lists differences of two results beyond rounding, figures of the machine apart."""
    if isinstance(expected, dict):
        keys = [key for key in {**actual, **expected} if key not in LOOSE]
        return [far for key in keys for far in far_figures(actual.get(key), expected.get(key), f"{path}.{key}")]
    if isinstance(expected, list) and isinstance(actual, list) and len(actual) == len(expected):
        pairs = enumerate(zip(actual, expected, strict=True))
        return [far for index, pair in pairs for far in far_figures(*pair, f"{path}.{index}")]
    if isinstance(expected, float) and isinstance(actual, float):
        return [] if abs(actual - expected) < 1e-3 * max(1.0, abs(expected)) else [f"{path}: {actual}, not {expected}"]
    return [] if actual == expected else [f"{path}: {actual!r}, not {expected!r}"]


@pytest.mark.parametrize("name", ["hsdp", "hsdp_2d"])
def test_four_processes_are_one(runs: Runs, name: str) -> None:
    assert_same(runs, name)


@pytest.mark.soak
def test_replicas_with_sgd_are_one_process(replicated: Runs) -> None:
    assert_same(replicated, "hsdp_2d_sgd", "sgd")


@pytest.mark.soak  # two processes of ddp are those that are killed, and other numbers take turns
def test_two_processes_of_ddp_become_four_and_four_are_one(runs: Runs) -> None:
    jobs = [
        runs.job("up", "parallel.name=ddp", days=1, processes=2, **UNEVALUATED),
        runs.job("up", "parallel.name=hsdp_2d", days=2, **UNEVALUATED),
        runs.job("ddp", "parallel.name=ddp"),
    ]
    torchrun(parallel_worker.main, jobs, runs.folder / "nobody-is-killed", processes=4)
    assert_same(runs, "ddp")
    assert_same_state(runs, "ddp")
    for arm in ARMS:
        up, single = (predictions(str(runs.run_dir(name)), arm) for name in ("up", "single"))
        far = max(furthest(up[window], single[window]) for window in (0, 1))
        assert up.keys() == {0, 1} and far < (HALF if arm == "half" else EXACT), arm


def test_plans_and_numbers_of_processes_take_turns(runs: Runs) -> None:
    """A single process, then four, two, and a single process again."""
    assert_same(runs, "turns")


@pytest.mark.parametrize("name", ["killed", "hsdp", "hsdp_2d", "turns"])
def test_who_has_saved_it_does_not_matter(runs: Runs, name: str) -> None:
    assert_same_state(runs, name)


def assert_same_state(runs: Runs, name: str) -> None:
    """Two processes, or four, save the same state as a single process, from which any number may go on."""
    for file in ("model", "training"):
        actual, expected = (saved(runs.run_dir(run), "fm", file) for run in (name, "single"))
        assert actual.keys() == expected.keys()
        for key, tensor in expected.items():
            assert actual[key].shape == tensor.shape and actual[key].dtype == tensor.dtype, key
            far = 1e-3 if tensor.is_floating_point() else 0.0
            torch.testing.assert_close(actual[key], tensor, rtol=far, atol=far, msg=key)
    ids = [tensor for key, tensor in saved(runs.run_dir(name), "fm", "model").items() if key.endswith("key_R")]
    assert len(ids) == 1 and int((ids[0] >= 0).sum()) == 16, "every row has an id, and all processes know which"


@pytest.mark.parametrize("name", ["killed", "hsdp", "hsdp_2d", "turns", "turns_grown"])
def test_every_plan_saves_the_rows_that_changed(runs: Runs, name: str) -> None:
    snapshot = Store(str(runs.run_dir(name))).snapshots.get("fm", DAYS - 1)
    assert snapshot.delta is not None and snapshot.delta.after == DAYS - 2


@pytest.mark.soak
def test_changed_rows_of_shards_make_the_whole_state(replicated: Runs) -> None:
    """With replicas that are averaged now and then: a delta is what a full snapshot is, to the bit."""
    runs = replicated
    for file in ("model", "training"):
        delta, full = (saved(runs.run_dir(name), "fm", file, 1) for name in ("often", "often_full"))
        assert delta.keys() == full.keys()
        assert [name for name in full if not torch.equal(delta[name], full[name])] == []
    are_full = [Store(str(runs.run_dir(name))).snapshots.get("fm", 1).delta is None for name in ("often", "often_full")]
    assert are_full == [False, True]
    assert Store(str(runs.run_dir("hsdp_2d_sgd"))).snapshots.get("fm", DAYS - 1).delta is not None


def saved(run_dir: Path, model: str, file: str, version: int = DAYS - 1) -> dict[str, Tensor]:
    """Weights or training state of a model's snapshot, by default its last, whole."""
    snapshots = Store(str(run_dir)).snapshots
    snapshot = snapshots.get(model, version)
    return snapshots.load_whole(snapshot.weights if file == "model" else snapshot.training)


@pytest.mark.soak
def test_what_replicas_have_learned_apart_is_saved(replicated: Runs) -> None:
    runs = replicated
    stopped, often = (predictions(str(runs.run_dir(name)), "fm") for name in ("often_stopped", "often"))
    assert stopped.keys() == often.keys() == {0, 1}
    single = predictions(str(runs.run_dir("single")), "fm")
    assert furthest(often[0], single[0]) > 1e-4, "replicas that are averaged now and then learn something else"
    assert furthest(stopped[0], often[0]) < EXACT


def test_a_table_grows_on_any_plan(runs: Runs) -> None:
    """Three times the rows for hashed ids: no prediction changes by that, and all go on as a single process does."""
    assert_same(runs, "turns_grown", "turns_grown_here")
    grown, single = (predictions(str(runs.run_dir(name)), "fm")[2] for name in ("turns_grown", "single"))
    assert furthest(grown, single) < EXACT
    later = (predictions(str(runs.run_dir(name)), "fm")[3] for name in ("turns_grown", "single"))
    assert furthest(*later) > EXACT, "ids that shared a row part from each other"


def test_sigkill_changes_nothing(runs: Runs) -> None:
    assert_same(runs, "killed")


@pytest.mark.parametrize("name", ["student", "student_of_two"])
def test_students_of_other_jobs_read_what_four_processes_have_written(runs: Runs, name: str) -> None:
    tables, expected = (predictions(str(runs.run_dir(run)), "vm") for run in (name, "single"))
    assert tables.keys() == expected.keys()
    assert max(furthest(tables[window], expected[window]) for window in expected) < EXACT
    assert len(list((runs.run_dir(name) / "supervision" / "fm").glob("window-000001-*-of-4-*"))) == 4


def test_killed_between_the_manifests_of_four_processes_one_goes_on(runs: Runs) -> None:
    """The supervision that four have committed stands; predictions are of the process that repeats the window."""
    assert_same(runs, "cut")
    files = [sorted((runs.run_dir("cut") / folder / "fm").glob("window-000003-*")) for folder in FOLDERS]
    assert [len(paths) for paths in files] == [4, 1]


@pytest.mark.soak
def test_rows_may_travel_rounded(replicated: Runs) -> None:
    runs = replicated
    rounded, single = (predictions(str(runs.run_dir(name)), "fm")[0] for name in ("rounded", "single"))
    assert 1e-7 < furthest(rounded, single) < 1e-2


def test_what_several_processes_cannot_do_is_refused_at_the_start(tmp_path: Path) -> None:
    write_days(tmp_path)
    process_group = exfm.parallel.ProcessGroup()
    process_group.world_size = 4
    for overrides, message in ((["stream.chunk_rows=3"], "stream.chunk_rows: 3 rows do not reach 4 processes"),):
        job = Runs(tmp_path).job("refused", *overrides, *(f"models.{arm}.batch_size=2" for arm in ARMS))
        place_log(job)
        with pytest.raises(exfm.ConfigError, match=message):
            check_sharding(exfm.load_experiment(job["config"], job["overrides"]), process_group)
