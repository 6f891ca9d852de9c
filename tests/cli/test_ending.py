"""SIGTERM and SIGINT: a job reports the signal, ends with its status, and leaves nothing unfinished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.training.logs import experiment_dict, make_log, write_log


def _heed_sigint() -> None:
    """Restores the handler of Ctrl-C, because a shell makes background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def ended(command: list[str], run_dir: Path, number: int) -> tuple[int, str]:
    """Starts a job, sends a signal once a window is committed, and returns its status and its stderr."""
    environment = {**os.environ, "TMPDIR": str(run_dir.parent)}
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment, preexec_fn=_heed_sigint
    ) as job:
        while job.poll() is None and not list((run_dir / "commits").rglob("*.json")):
            time.sleep(0.02)
        job.send_signal(number)
        assert job.stderr is not None
        said = job.stderr.read()
    return job.returncode, said


@pytest.mark.parametrize(
    ("command", "number", "status", "how"),
    [
        ("run", signal.SIGTERM, 143, "ended by SIGTERM"),
        ("follow", signal.SIGTERM, 143, "ended by SIGTERM"),
        ("background", signal.SIGTERM, 143, "ended by SIGTERM"),
        ("run", signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_job_that_is_asked_to_end_leaves_what_is_committed(
    command: str, number: int, status: int, how: str, tmp_path: Path
) -> None:
    config = experiment_dict(write_log(tmp_path / "log", make_log(rows=900)), str(tmp_path / "run"))
    del config["models"]["vm"]
    config["save_in_background"] = command == "background"
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(config))
    exfm = [sys.executable, "-m", "exfm"]
    job = [*exfm, "train", str(path), "--model", "fm", "--follow"] if command == "follow" else [*exfm, "run", str(path)]
    ended_with, said = ended(job, tmp_path / "run", number)
    last = said.splitlines()[-1]
    assert (ended_with, last) == (status, f"{how}; what is committed is kept, and the same command goes on from there")
    assert not list(tmp_path.rglob(".exfm.*"))
