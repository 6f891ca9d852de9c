"""Snapshots of a version that wrote no index of tensors: a run goes on from them, and they are predicted with."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

import exfm
from exfm.serving.predict import predict
from exfm.storage.manifests import seal
from exfm.storage.workspace import Workspace
from tests.training.interruption import StopError
from tests.training.logs import differences, experiment_dict, load, make_log, write_log


def without_index(run_dir: Path) -> int:
    """Turns the snapshots of a run into those of a version without shards; returns their number."""
    workspace, count = Workspace(str(run_dir)), 0
    for path in run_dir.glob("commits/train/*/*.json"):
        manifest = json.loads(path.read_text())
        record = manifest["files"]["snapshot"]
        file = run_dir / record["path"]
        if file.exists():  # not retired
            content = json.loads(file.read_text())
            assert content.pop("tensors").keys() == {"model", "training"}
            file.unlink()
            folder = record["path"].rpartition("/")[0]
            written = workspace.write_json(f"{folder}/snapshot-{{digest}}.json", content)
            manifest["files"]["snapshot"] = vars(written)
            del manifest["xxh3"]
            path.write_bytes(seal(manifest))
            count += 1
    return count


def test_a_run_goes_on_from_snapshots_without_an_index(tmp_path: Path) -> None:
    """Its models, and the labeller that reads the snapshots of a teacher, end as those of an undisturbed run."""
    log = write_log(tmp_path / "log", make_log(rows=400))
    experiments: list[exfm.Experiment] = []
    for name in ("undisturbed", "old"):
        config = experiment_dict(log, str(tmp_path / name))
        config["models"]["fm"]["supervision"] = {"delay": "1d"}
        experiments.append(load(tmp_path, config))
    expected, chunks = exfm.run(experiments[0]), itertools.count(1)

    def stop(_: object) -> None:
        if next(chunks) == 5:
            raise StopError

    with pytest.raises(StopError):
        exfm.run(experiments[1], stop)
    assert without_index(tmp_path / "old") >= 6, "of three models"
    snapshot, _ = predict(experiments[1], "vm", str(tmp_path / "before.parquet"))
    assert snapshot.weights.index.path.endswith(".json")
    assert differences(exfm.run(experiments[1]), expected) == []
