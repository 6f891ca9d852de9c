"""The launcher `local`: processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import exfm_plugins.launchers
from exfm.launch import Fleet, Job
from exfm.testing import LauncherTests
from exfm_plugins.launchers.local.launcher import Local


class TestLocal(LauncherTests):
    component = Local
    plugin = exfm_plugins.launchers
    configs = ({}, {"memory_gib": 8, "models": {"fm": {"cores": 2, "memory_gib": 4}}})


def fleet(folder: Path, *jobs: Job) -> Fleet:
    return Fleet("ads", str(folder), str(folder / "logs"), jobs)


def test_jobs_wait_for_memory_and_endless_jobs_must_fit(tmp_path: Path) -> None:
    local = Local(Local.Config(memory_gib=4))
    small, large = Job("a", ("exfm",), memory_bytes=2 << 30), Job("b", ("exfm",), memory_bytes=3 << 30)
    assert local.has_room(large, []) and local.has_room(small, [small])
    assert not local.has_room(large, [small])
    with pytest.raises(ValueError, match=r"2 jobs that follow .* need 5\.0 GiB at once: launcher\.memory_gib is 4\.0"):
        local.open(fleet(tmp_path, small, large))
    with pytest.raises(ValueError, match=r"c needs 5\.0 GiB"):
        local.open(fleet(tmp_path, Job("c", ("exfm",), memory_bytes=5 << 30, follows=False)))
    local.open(fleet(tmp_path, small))


DRIVER = """
import sys, time
from exfm.launch import Fleet, Job
from exfm_plugins.launchers.local.launcher import Local
local = Local(Local.Config(cores=1))
local.open(Fleet("ads", sys.argv[1], sys.argv[1], ()))
code = "import os, sys, time; print(os.getpid(), len(os.sched_getaffinity(0)), flush=True); time.sleep(600)"
local.start(Job("train-vm", (sys.executable, "-S", "-c", code)))
time.sleep(600)
"""


def test_no_job_is_left_when_the_driver_is_killed(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path)])
    log = tmp_path / "train-vm.log"
    until = time.monotonic() + 60
    while not (log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < until and driver.poll() is None
        time.sleep(0.05)
    job, cores = map(int, log.read_text().split())
    assert cores == 1  # as the launcher limits its jobs
    assert Path(f"/proc/{job}").exists() and os.getpgid(job) == job
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while Path(f"/proc/{job}").exists() and "Z" not in Path(f"/proc/{job}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.02)
