"""Two processes, either of which is killed at any of its writes: no row is lost, and none is written twice."""

from __future__ import annotations

import itertools
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist

from exfm.storage import workspace
from exfm.storage.exclusive import create_file
from exfm.storage.hashing import HashingWriter
from exfm.storage.workspace import Workspace
from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.logs import predictions, supervision
from tests.training.test_parallel import Runs, write_days

MODELS = ("fm", "late", "vm")
KILLS = 10
WRITES = (120, 50)
"""Moments of either process, two for each file, of which it is killed at one: in one to three of four windows."""


def worker(jobs: list[dict[str, Any]], moments: list[list[int]], folder: Path) -> None:
    """Does the jobs, and kills a process once in each at its moment."""
    writing, create = Workspace.writing, create_file
    for number, (job, (rank, moment)) in enumerate(zip(jobs, moments, strict=True)):
        marker, writes = folder / f"killed-{number}", itertools.count(1)

        def count(
            marker: Path = marker, writes: Iterator[int] = writes, rank: int = rank, moment: int = moment
        ) -> None:
            if next(writes) == moment and dist.get_rank() == rank and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        @contextmanager
        def counted_writing(
            self: Workspace, relative: str, sync: bool = True, count: Any = count
        ) -> Iterator[HashingWriter]:
            with writing(self, relative, sync) as file:
                yield file
                count()  # the file is written, and has no name yet
            count()

        def counted_create(*arguments: Any, count: Any = count) -> bool:
            count()
            created = create(*arguments)
            count()
            return created

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workspace, "writing", counted_writing)
            patch.setattr(workspace, "create_file", counted_create)
            parallel_worker.main([job], folder / "unused")


@pytest.mark.soak
def test_a_process_killed_at_any_write_loses_no_row_and_writes_none_twice(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    write_days(tmp_path)
    jobs, moments = [], [[0, 0]]
    for number in range(KILLS + 1):
        background = f"save_in_background={str(number % 2 == 0).lower()}"
        jobs.append(runs.job(f"run-{number}", "parallel.name=ddp", background, models=MODELS, evaluate=False))
    for number in range(KILLS):
        choices = random.Random(number)
        rank = number % 2
        moments.append([rank, choices.randint(1, WRITES[rank])])
    torchrun(worker, jobs, moments, tmp_path, processes=2, restarts=KILLS)
    assert len(list(tmp_path.glob("killed-*"))) == KILLS
    for number in range(1, KILLS + 1):
        for read in (predictions, supervision):
            for model in MODELS if read is predictions else ("fm", "late"):
                tables, expected = (read(str(runs.run_dir(f"run-{run}")), model) for run in (number, 0))
                assert tables == expected and len(expected) == 4, (moments[number], model)
