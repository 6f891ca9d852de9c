"""Jobs are kept up: started again where they fail, in the right order, and stopped together."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from exfm.launch import Fleet, Job, keeper
from exfm.launch.keeper import Keeper
from exfm_plugins.launchers.local.launcher import Local


def job(name: str, code: str, *waits_for: str, follows: bool = False) -> Job:
    command = (sys.executable, "-S", "-c", f"import os, sys, time\n{code}")
    return Job(name, command, waits_for=waits_for, memory_bytes=1 << 20, follows=follows)


def keep(folder: Path, *jobs: Job, restarts: int = 2) -> tuple[list[str], list[str]]:
    """Keeps jobs up until all have ended: the names of those that failed, and the lines that were said."""
    said: list[str] = []
    fleet = Fleet("ads", str(folder), str(folder / "logs"), jobs)
    return Keeper(Local(Local.Config()), fleet, restarts, said.append).run(), said


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "_POLL_S", 0.01)
    monkeypatch.setattr(keeper, "_LONGEST_WAIT_S", 0.1)


def test_a_job_is_started_again_until_it_is_given_up(tmp_path: Path) -> None:
    count = f"open({str(tmp_path / 'tries')!r}, 'a').write('x'); tries = os.path.getsize({str(tmp_path / 'tries')!r})"
    killed = f"{count}\nif tries < 3: os.kill(os.getpid(), 9)"
    failed, said = keep(
        tmp_path,
        job("mends", killed),
        job("never", "print('why', file=sys.stderr); sys.exit(1)"),
        job("wrong", "sys.exit(2)"),
        job("after", "", "mends"),
        job("report", "", "mends", "never"),
    )
    assert failed == ["never", "wrong", "report"]
    text = "\n".join(said)
    assert text.count("mends: ended by signal 9") == 2 and "mends: done" in text and "after: done" in text
    assert text.count("never: started") == 3  # the first time, and two restarts
    assert "never: ended with status 1: why; it is not started again after 3 failures in a row" in text
    assert text.count("wrong: started") == 1 and "because its input is wrong" in text
    assert "report: started" not in text and "report: not done, because it waits for never" in text
    assert text.index("mends: done") < text.index("after: started")


def test_a_job_that_ended_before_its_teacher_looks_again(tmp_path: Path) -> None:
    labels, seen = tmp_path / "labels", tmp_path / "seen"
    teacher = job("teacher", f"time.sleep(0.3); open({str(labels)!r}, 'w').close()", follows=True)
    student = job(
        "student", f"if os.path.exists({str(labels)!r}): open({str(seen)!r}, 'w').close()", "teacher", follows=True
    )
    failed, said = keep(tmp_path, student, teacher)
    assert not failed and seen.exists()
    assert said[0].startswith("student: started")  # at once: it would wait for the labels by itself


def test_an_interruption_stops_all_jobs(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    loop = "while True:\n    open(sys.argv[0] and {path!r}, 'a').write('.'); time.sleep(0.01)"
    ends = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"

    def interrupt(line: str) -> None:
        if line.startswith("deaf: started"):
            while not beats.exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    fleet = Fleet(
        "ads", str(tmp_path), str(tmp_path / "logs"),
        (job("beats", loop.format(path=str(beats)), follows=True), job("deaf", ends, follows=True)),
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(keeper, "_PATIENCE_S", 0.3)
        Keeper(Local(Local.Config()), fleet, 0, interrupt).run()
    size = beats.stat().st_size
    time.sleep(0.1)
    assert beats.stat().st_size == size
    # Both locks are free: no process of a job is left.
    assert not keep(tmp_path, job("beats", ""), job("deaf", ""))[0]


def test_a_job_of_another_process_is_left_alone_until_it_has_ended(tmp_path: Path) -> None:
    local = Local(Local.Config())
    first = job("train-vm", "time.sleep(0.5)")
    local.open(Fleet("ads", str(tmp_path), str(tmp_path / "logs"), (first,)))
    running = local.start(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "_LOOK_AGAIN_S", 0.05)
        failed, said = keep(tmp_path, first)
    assert not failed and running.poll() == 0
    assert said[0].startswith("train-vm: another process runs it") and "train-vm: done" in said[-1]
    assert len(said) == 3  # it is said once
