"""SIGTERM and SIGINT: a job reports the signal, ends with its status, and leaves nothing unfinished."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from exfm.cli.main import main
from tests.processes import start
from tests.training.logs import experiment_dict, make_log, write_log


def _exfm(arguments: list[str]) -> None:
    """Runs the command line with the handler of Ctrl-C, because a shell makes background jobs ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["exfm", *arguments]
    main()


def ended(arguments: list[str], folder: Path, number: int) -> tuple[int | None, str]:
    """Starts a job, sends a signal once a window is committed, and returns its status and its stderr."""
    said = folder / "said"
    said.mkdir()
    job = start(_exfm, arguments, said=said, environment={"TMPDIR": str(folder)})
    assert job.pid is not None
    while job.is_alive() and not list((folder / "run/commits/train").rglob("*.json")):
        time.sleep(0.02)
    os.kill(job.pid, number)
    job.join()
    return job.exitcode, (said / "err").read_text(encoding="utf-8")


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
    job = ["train", str(path), "--model", "fm", "--follow"] if command == "follow" else ["run", str(path)]
    ended_with, said = ended(job, tmp_path, number)
    last = said.splitlines()[-1]
    assert (ended_with, last) == (status, f"{how}; what is committed is kept, and the same command goes on from there")
    assert not list(tmp_path.rglob(".exfm.*"))
