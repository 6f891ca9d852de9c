"""What each process of a parallel test does: the runs of a JSON file, one after the other, in one process group.

A job is ``{"config": path, "overrides": [...], "log": [[from, to], ...], "die_after": chunks}``, the last optional: the
files that its log is to have, and after how many chunks the second process is to be killed by SIGKILL, once.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import exfm
from exfm_plugins.ddp.processes import Processes


def place_log(job: dict[str, Any]) -> None:
    """Gives the log the files that it lacks."""
    for source, target in job["log"]:
        Path(target).parent.mkdir(exist_ok=True)
        if not Path(target).exists():
            shutil.copy(source, target)


def main(jobs: list[dict[str, Any]], marker: Path) -> None:
    Processes(torch.device("cpu"))  # one connection for all jobs
    for job in jobs:
        if dist.get_rank() == 0:
            place_log(job)
        dist.barrier()
        chunks = itertools.count(1)

        def on_progress(_: object, job: dict[str, Any] = job, chunks: itertools.count[int] = chunks) -> None:
            due = next(chunks) == job.get("die_after")
            if due and dist.get_rank() == 1 and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        results = exfm.run(exfm.load_experiment(job["config"], job["overrides"]), on_progress)
        assert bool(results) == (dist.get_rank() == 0)
    dist.barrier()
    os._exit(0)  # as `exfm run` does


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).with_suffix(".killed"))
