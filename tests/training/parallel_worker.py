"""Runs the jobs of a parallel test in a process: one after the other, in the same process group.

A job is ``{"config": path, "overrides": [...], "log": [[from, to], ...], "die_after": chunks, "processes": n,
"evaluate": False}``, the last three optional: the files that its log is to have, after how many chunks the second
process is to be killed by SIGKILL, once, how many of the processes do it, the last job all of them, and that nobody
reads its results.json.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import exfm
from exfm.parallel import TorchProcessGroup
from exfm.storage import deltas
from exfm.storage.workspace import Workspace
from tests.processes import leave_plots_out
from tests.training.logs import train

NAMES = Workspace.names


def place_log(job: dict[str, Any]) -> None:
    """Gives the log the files that it lacks."""
    for source, target in job["log"]:
        Path(target).parent.mkdir(exist_ok=True)
        if not Path(target).exists():
            shutil.copy(source, target)


def connect(rank: int, processes: int) -> None:
    """Connects the first processes anew."""
    if dist.is_initialized():
        dist.destroy_process_group()
    os.environ["WORLD_SIZE"] = str(processes)
    if rank < processes:
        TorchProcessGroup(torch.device("cpu"))


def list_late(self: Workspace, folder: str) -> list[str]:
    """Lists a folder of a store whose listing lacks its newest name."""
    listed = NAMES(self, folder)
    return listed[:-1] if folder.startswith(("commits/", "snapshots/")) else listed


def save_deltas(patch: pytest.MonkeyPatch) -> None:
    """Lets snapshots of small tables be deltas, even where most of the rows change."""
    patch.setattr(deltas, "SMALL_BYTES", 0)
    patch.setattr(deltas, "_MOST_ROWS", 100.0)


def main(jobs: list[dict[str, Any]], marker: Path) -> None:
    leave_plots_out(pytest.MonkeyPatch())
    save_deltas(pytest.MonkeyPatch())
    rank, started, connected = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), 0
    if rank == 1:
        Workspace.names = list_late  # type: ignore[method-assign]  # it must go by what the first process says
    for job in jobs:
        process_count = job.get("processes", started)
        if process_count != connected:  # else all jobs share a connection
            connect(rank, process_count)
            connected = process_count
        if rank >= process_count:
            continue
        if dist.get_rank() == 0:
            place_log(job)
        dist.barrier()
        chunks = itertools.count(1)

        def on_progress(_: object, job: dict[str, Any] = job, chunks: itertools.count[int] = chunks) -> None:
            due = next(chunks) == job.get("die_after")
            if due and dist.get_rank() == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        experiment = exfm.load_experiment(job["config"], job["overrides"])
        if not job.get("evaluate", True):
            train(experiment)
            continue
        results = exfm.run(experiment, on_progress)
        assert bool(results) == (dist.get_rank() == 0)
    dist.barrier()
