"""Runs whose snapshots are deltas: equal, bit for bit, to a run with full ones, also where they are interrupted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import exfm
from exfm.experiment.run import build_plan
from exfm.scheduling.identity import open_run
from exfm.storage import deltas
from exfm.storage.snapshot_links import links
from exfm.supervision.store import Store, open_store
from exfm.training.loop import StreamLoop
from tests.training.logs import experiment_dict, make_log, predictions, write_log

MODELS = ("fm", "vm")
WINDOWS = 6


def config_of(log: Path, run: Path, full_every: int) -> dict[str, Any]:
    """Items have managed ids with too few rows, whose rows get other ids; the VM adds states of users to its rows."""
    config = experiment_dict(str(log), str(run))
    _, item, _, history = config["stream"]["source"]["features"]
    for ids in (item, history["fields"][0]):
        ids |= {"ids": "managed", "rows": 16}
    models = config["models"]
    models["fm"] |= {
        "supervision": {"states": {"user": ["user", "item"]}},
        "optimizer": {"tables": {"name": "adagrad"}},
    }
    models["vm"]["control"] = False
    models["vm"]["features"] = ["user", "price"]  # states go to rows of ids that are not managed
    models["vm"]["transfer"].append({"name": "compact_features", "teacher": "fm"})
    for model in models.values():
        model["keep"] = {"snapshots": "all", "full_snapshot_every": full_every}
    return config


def train(log: Path, run: Path, full_every: int, windows: int | None = None) -> Store:
    path = run.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(config_of(log, run, full_every)))
    experiment = exfm.load_experiment(str(path))
    store, plan = open_store(experiment), build_plan(experiment)
    open_run(experiment, store)
    StreamLoop(experiment, store, plan, lambda _: None).advance(first_windows=windows)
    return Store(experiment.run_dir)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with full snapshots, `full`, and a run with a full one of three, `deltas`, which is interrupted twice."""
    folder = tmp_path_factory.mktemp("deltas")
    write_log(folder / "log", make_log(rows=300))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deltas, "SMALL_BYTES", 0)
        patch.setattr(deltas, "_MOST_ROWS", 9.0)
        train(folder / "log", folder / "full", 1)
        for windows in (2, 5):
            train(folder / "log", folder / "deltas", 3, windows)
        shutil.copytree(folder / "deltas", folder / "damaged")
        train(folder / "log", folder / "deltas", 3)
    return folder


def snapshot(store: Store, model: str, version: int) -> dict[str, Tensor]:
    snapshots = store.snapshots
    files = snapshots.get(model, version)
    return snapshots.load_whole(files.weights) | snapshots.load_whole(files.training)


def assert_same_runs(actual: Store, expected: Store) -> None:
    for model in MODELS:
        for version in range(WINDOWS):
            ours, theirs = snapshot(actual, model, version), snapshot(expected, model, version)
            assert ours.keys() == theirs.keys()
            assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
        for window, rows in predictions(expected.workspace.url, model).items():
            assert predictions(actual.workspace.url, model)[window].equals(rows)


def test_deltas_change_nothing(folder: Path) -> None:
    store = Store(str(folder / "deltas"))
    assert_same_runs(store, Store(str(folder / "full")))
    chains = {model: [list(links(store.log, model, version)) for version in range(WINDOWS)] for model in MODELS}
    assert chains == {model: [[0], [1, 0], [2, 1, 0], [3], [4, 3], [5, 4, 3]] for model in MODELS}
    names = [path.name for path in (folder / "deltas" / "snapshots" / "fm" / "000005").iterdir()]
    (index,) = [name for name in names if name.startswith("snapshot-")]
    saved = json.loads((folder / "deltas/snapshots/fm/000005" / index).read_text())["tensors"]["training"]
    assert any(name.endswith("#rows") for name in saved)


@pytest.mark.parametrize("version", [3, 4])
def test_a_run_goes_back_behind_a_damaged_link(
    folder: Path, version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deltas, "SMALL_BYTES", 0)
    monkeypatch.setattr(deltas, "_MOST_ROWS", 9.0)
    shutil.copytree(folder / "damaged", tmp_path / "damaged")
    (file,) = (tmp_path / f"damaged/snapshots/vm/{version:06d}").glob("training-*")
    file.write_bytes(b"")
    store = train(folder / "log", tmp_path / "damaged", 3)
    assert "going back to the snapshot before it" in caplog.text
    assert_same_runs(store, Store(str(folder / "full")))
