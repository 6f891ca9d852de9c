"""The launcher `ray`, on a Ray of this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import exfm_plugins.launchers
from exfm.launch import Fleet, Job
from exfm.testing import LauncherTests

pytest.importorskip("ray", reason="ray is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray

    from exfm_plugins.launchers.ray.launcher import Ray

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A Ray that all tests of this file share, because it takes seconds to start."""
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="tests")
    yield
    ray.shutdown()


class TestRay(LauncherTests):
    component = Ray
    plugin = exfm_plugins.launchers
    configs = ({}, {"address": "auto", "needs": {"cores": 0.5}})


def test_a_job_is_lost_with_its_actor(tmp_path: Path) -> None:
    launcher = Ray(Ray.Config())
    launcher.open(Fleet("ads", str(tmp_path), str(tmp_path), ()))
    code = "import os, time; print(os.getpid(), os.getppid(), flush=True); time.sleep(600)"
    running = launcher.start(Job("train-vm", (sys.executable, "-S", "-c", code), cores=0.5, memory_bytes=1 << 20))
    log, until = tmp_path / "train-vm.log", time.monotonic() + 60
    while not (running.poll() is None and log.exists() and log.read_text().endswith("\n")):
        assert time.monotonic() < until
        time.sleep(0.05)
    job, actor = map(int, log.read_text().split())
    os.kill(actor, signal.SIGKILL)
    while running.poll() is None or Path(f"/proc/{job}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert running.poll() == -signal.SIGKILL
