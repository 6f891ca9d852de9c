"""A model that is no longer finite is never committed; with lower rates a run goes on from the last good snapshot."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save

import exfm
from exfm.errors import RunError
from exfm.experiment.run import build_plan
from exfm.scheduling.identity import open_run
from exfm.serving.export import Form, export
from exfm.serving.predict import predict
from exfm.storage.commits import Commit
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from tests.training.logs import DAY_US, START_US, experiment_dict, load, make_log, write_log

DENSE, TABLES = "models.{}.optimizer.dense.lr", "models.{}.optimizer.tables.lr"


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(rows=900))


def small(log: str, run_dir: str) -> dict[str, Any]:
    """An FM and a student without a control."""
    config = experiment_dict(log, run_dir)
    config["models"]["fm"] = {"backbone": {"name": "dlrm"}, "embedding_dim": 8, "batch_size": 64}
    del config["models"]["vm"]["control"]
    return config


def train(experiment: exfm.Experiment) -> None:
    """Trains the windows that are not committed, as `exfm run` does."""
    StreamLoop(experiment, Store(experiment.run_dir), build_plan(experiment), lambda _: None).advance()


def committed(run_dir: Path) -> dict[str, list[int]]:
    """The windows that each model has committed."""
    log = Store(str(run_dir)).log
    return {model: log.windows("train", model) for model in ("fm", "vm")}


def first_days(days: int) -> pa.Table:
    """The rows of the log's first windows."""
    whole = make_log(rows=900)
    times = whole.column("event_time").cast(pa.int64()).to_numpy()
    return whole.slice(0, int(np.searchsorted(times, START_US + days * DAY_US)))


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("rate", [DENSE, TABLES])
@pytest.mark.parametrize("model", ["fm", "vm"])
def test_nothing_is_committed_of_a_window_in_which_a_model_diverges(
    log: str, tmp_path: Path, model: str, rate: str, background: bool
) -> None:
    key = rate.format(model)
    config = small(log, str(tmp_path / "run")) | {"save_in_background": background}
    with pytest.raises(RunError) as caught:
        train(load(tmp_path, config, f"{key}=1e30"))
    message = str(caught.value)
    usual = "0.001" if rate == DENSE else "0.1"
    assert f"model {model!r}, window 2023-11-15T0" in message and "the model diverged: " in message
    assert "not committed; there is no snapshot yet" in message and f"{key}={usual} (now 1e+30)" in message
    assert re.search(r"of 128 examples are NaN or infinite, and so are values of \w+\.\S+\.", message)
    assert message.endswith(f": `exfm run CONFIG {key}={usual}`")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]


def test_a_restart_with_a_lower_rate_goes_on_from_the_last_good_snapshot(log: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    short = tmp_path / "short"
    config = small(write_log(short, first_days(2)), str(run_dir))
    train(load(tmp_path, config))
    before = committed(run_dir)
    assert before == {"fm": [0, 1], "vm": [0, 1]}
    config = small(log, str(run_dir))
    with pytest.raises(RunError, match=r"'vm', window 2023-11-17.*snapshot, after window 2023-11-16\S*, stands"):
        train(load(tmp_path, config, "models.vm.optimizer.dense.lr=1e30"))
    assert committed(run_dir) == before  # the other model has not gone ahead
    train(load(tmp_path, config, "models.vm.optimizer.dense.lr=1e-4", "models.vm.optimizer.tables.lr=0.01"))
    assert committed(run_dir) == {"fm": [0, 1, 2, 3, 4, 5], "vm": [0, 1, 2, 3, 4, 5]}


@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_the_rates_of_a_restart_are_the_configs(log: str, tmp_path: Path, optimizer: str) -> None:
    run_dir = tmp_path / "run"
    tables = optimizer if optimizer != "adam" else "rowwise_adagrad"
    kinds = [f"models.fm.optimizer.dense.name={optimizer}", f"models.fm.optimizer.tables.name={tables}"]
    config = small(write_log(tmp_path / "short", first_days(2)), str(run_dir))
    train(load(tmp_path, config, *kinds))
    config = small(log, str(run_dir))
    train(load(tmp_path, config, *kinds, f"{DENSE.format('fm')}=1e-30", f"{TABLES.format('fm')}=1e-30"))
    first, last = (load_file(weights_of(run_dir, "fm", window)) for window in (4, 5))
    learned = [name for name in first if not name.startswith("featurizer.dense.") or ".mlp." in name]
    changed = [name for name in learned if not torch.allclose(first[name], last[name], rtol=0, atol=1e-25)]
    assert len(learned) > 10 and changed == []


def test_another_kind_of_optimizer_is_refused_in_words(log: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    config = small(write_log(tmp_path / "short", first_days(1)), str(run_dir))
    train(load(tmp_path, config))
    config = small(log, str(run_dir))
    for group, kind in (("dense", "adagrad"), ("tables", "rowwise_adagrad")):
        with pytest.raises(exfm.ConfigError, match=rf"models\.fm\.optimizer\.{group}\.name: .* another optimizer"):
            train(load(tmp_path, config, f"models.fm.optimizer.{group}.name={kind}"))


@pytest.mark.parametrize(
    ("rate", "symptom"),
    [
        ("dense.lr=1e39", "featurizer.dense.mlp.0.weight holds NaN or infinite values"),
        ("tables.lr=1e39", "featurizer.*table_user.weight holds NaN or infinite values"),
        ("dense.lr=1e30", "after its last step its predictions are NaN or infinite"),
    ],
)
def test_divergence_in_the_last_step_of_a_window(log: str, tmp_path: Path, rate: str, symptom: str) -> None:
    """A batch a window, which is predicted with finite weights; with 1e30 they are finite after it, and of no use."""
    run_dir = tmp_path / "run"
    for days in (2, 6):
        config = small(write_log(tmp_path / f"log-{days}", first_days(days)), str(run_dir))
        config["stream"]["chunk_rows"] = config["models"]["fm"]["batch_size"] = 512
        del config["models"]["vm"]
        if days == 2:
            train(load(tmp_path, config))
    with pytest.raises(RunError, match=rf"'fm', window 2023-11-17\S*: .*{symptom}.*after window 2023-11-16\S*, stands"):
        train(load(tmp_path, config, f"models.fm.optimizer.{rate}"))
    assert Store(str(run_dir)).log.windows("train", "fm") == [0, 1]
    train(load(tmp_path, config))
    assert Store(str(run_dir)).log.windows("train", "fm") == [0, 1, 2, 3, 4, 5]


def weights_of(run_dir: Path, model: str, window: int) -> Path:
    (file,) = (run_dir / "snapshots" / model / f"{window:06d}").glob("model-*.safetensors")
    return file


def spoil(run_dir: Path, model: str, window: int) -> str:
    """Puts NaN into a committed snapshot, as a version without the check did; returns the tensor's name."""
    store = Store(str(run_dir))
    commit = store.log.load("train", model, window)
    weights = load_file(weights_of(run_dir, model, window))
    name = min(name for name in weights if name.startswith("backbone"))
    weights[name][0] = torch.inf
    record = store.workspace.write(commit.files["model"].path, save(weights))
    (run_dir / "commits" / "train" / model / f"{window:06d}.json").unlink()
    files = {**commit.files, "model": record}
    assert store.log.add("train", model, Commit(commit.window, commit.counters, files))
    return name


def test_what_an_older_version_has_committed_is_refused(tmp_path: Path) -> None:
    run_dir, later = tmp_path / "run", {"supervision": {"delay": "1d"}}
    config = small(write_log(tmp_path / "log", first_days(4)), str(run_dir))
    config["models"]["fm"] |= later
    experiment = load(tmp_path, config)
    open_run(experiment, Store(str(run_dir)))
    plan, store = build_plan(experiment), Store(str(run_dir))
    StreamLoop(experiment, store, plan, lambda _: None, train=("fm",), label=()).advance()
    lower = load(tmp_path, config, "models.fm.optimizer.dense.lr=0.0001")
    assert (
        predict(lower, "fm", str(tmp_path / "before.parquet"))[1] == first_days(4).num_rows
    )  # rates are no part of it
    refusals = [rf"'fm' after window {w} is not finite: {spoil(run_dir, 'fm', w)} holds" for w in (1, 3)]
    with pytest.raises(RunError, match=refusals[1]):
        predict(experiment, "fm", str(tmp_path / "predictions.parquet"))
    with pytest.raises(RunError, match=refusals[1]):
        export(experiment, "fm", str(tmp_path / "out"), Form(compiled=False))
    with pytest.raises(RunError, match=refusals[0]):
        StreamLoop(experiment, store, plan, lambda _: None, train=(), label=("fm",)).advance()
    more = small(write_log(tmp_path / "more", make_log(rows=900)), str(run_dir))
    more["models"]["fm"] |= later
    with pytest.raises(RunError, match=refusals[1]):
        train(load(tmp_path, more))
    assert not (tmp_path / "predictions.parquet").exists() and not (tmp_path / "out").exists()
