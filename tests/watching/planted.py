"""A run of six windows, and problems that are planted into copies of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import exfm
from exfm.storage.commits import CommitLog, Stage
from exfm.storage.job_records import JobRecord, JobStage, new_record, write_record
from exfm.storage.manifests import seal, unseal
from exfm.storage.workspace import Workspace
from tests.training.logs import experiment_dict, load, make_log, write_log


def whole_run(folder: Path) -> Path:
    """Runs an FM that labels a day later, a VM and its control."""
    config = experiment_dict(write_log(folder / "log", make_log(rows=600)), str(folder / "run"))
    config["models"]["fm"] = {
        "backbone": {"name": "mlp"},
        "embedding_dim": 8,
        "batch_size": 64,
        "supervision": {"delay": "1d"},
    }
    exfm.run(load(folder, config))
    return folder / "run"


def record(workspace: Workspace, stage: JobStage, *models: str, **changes: Any) -> JobRecord:
    """Writes the record of a job of this process, which is alive."""
    begun = new_record(f"{stage} {models[0]}", stage, models, 2.0)
    written = replace(begun, stream_until_us=_end_us(workspace), **changes)
    write_record(workspace, written)
    return written


def go_back(workspace: Workspace, stage: Stage, model: str, windows: int) -> None:
    """Removes the newest manifests of a model."""
    for _ in range(windows):
        CommitLog(workspace).remove_head(stage, model)


def hold(workspace: Workspace, model: str, reason: str) -> None:
    """Lets a gate hold the newest snapshot of a model."""
    head = CommitLog(workspace).head("train", model)
    path = f"commits/train/{model}/{head:06d}.json"
    manifest: Any = unseal(workspace.read(path))
    manifest["counters"]["held"] = {"click": reason}
    workspace.write(path, seal(manifest))


def _end_us(workspace: Workspace) -> int:
    commit = CommitLog(workspace).load("train", "vm.control", 5)
    return commit.window.end_us


def _dead_pid() -> int:
    """Returns the id of a process that has ended."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def crashed(workspace: Workspace) -> None:
    record(workspace, "train", "vm", "vm.control", pid=_dead_pid())


def failed(workspace: Workspace) -> None:
    record(workspace, "train", "vm", "vm.control", state="failed", error="<b>disk</b> full")


def stalled(workspace: Workspace) -> None:
    go_back(workspace, "supervise", "fm", 2)
    record(workspace, "train", "fm")
    record(workspace, "supervise", "fm")


def lagging(workspace: Workspace) -> None:
    go_back(workspace, "train", "vm", 2)


def held(workspace: Workspace) -> None:
    hold(workspace, "fm", "in window 2023-11-20 its NE of click is 2.0")


PLANTED: dict[str, tuple[Callable[[Workspace], None], str, str, str]] = {
    "a crashed job": (crashed, "vm", "crashed", "train vm has died: no sign of life of process"),
    "a failed job": (failed, "vm", "crashed", "train vm has failed: <b>disk</b> full"),
    "a stalled teacher": (stalled, "fm", "stalled", "no further window labelled for"),
    "a lagging student": (lagging, "vm", "lagging", "2 windows behind the labels of fm"),
    "a held snapshot": (held, "fm", "held", "snapshot 5 is held, and snapshot 4 is in use: in window"),
}
"""By problem: how to plant it, the model, the kind of the problem, and how its text begins."""


def to_memory(folder: Path, url: str) -> None:
    """Copies a run into a store."""
    workspace = Workspace(url)
    for path in folder.rglob("*"):
        if path.is_file():
            workspace.overwrite(str(path.relative_to(folder)), path.read_bytes())
    assert json.loads(workspace.read("run.json"))
