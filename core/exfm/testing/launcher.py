"""Tests that hold for every launcher: of jobs that it starts, and of files that it writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import pytest

from exfm.interfaces.component import Component
from exfm.interfaces.launcher import Fleet, Job, Launcher, RunningJob, RunsAlreadyError
from exfm.testing.component import ComponentTests

_PATIENCE_S = 60.0
_BEATS = """
import os, sys, time
if os.fork() == 0:  # a process that the job starts, and that must end with it
    while True:
        with open(sys.argv[1], "a") as file:
            file.write(".")
        time.sleep(0.02)
time.sleep(600)
"""


class LauncherTests(ComponentTests):
    """Tests of a launcher; see ``exfm.testing`` for how to use them.

    Those of started jobs need an engine on this machine; they are skipped for launchers that write files alone.
    """

    interface: ClassVar[type[Component]] = Launcher

    def make(self, fields: Mapping[str, Any]) -> Any:
        """The launcher."""
        return self.component(self.config(fields))

    def fleet(self, folder: Path) -> Fleet:
        """Jobs of every kind: a trainer, a labeller and a group that follow a stream, and a report after them."""
        config = str(folder / "an experiment.yaml")
        jobs: list[Job] = []
        for name, stage, models, waits in (
            ("train-fm", "train", ("fm",), ()),
            ("supervise-fm", "supervise", ("fm",), ("train-fm",)),
            ("train-Vm_1-and-1-more", "train", ("Vm_1", "vm-2"), ("supervise-fm",)),
        ):
            options = [word for model in models for word in ("--model", model)]
            command = ("exfm", stage, config, "seed=1", *options, "--follow")
            jobs.append(Job(name, command, models, waits_for=waits, cores=2, memory_bytes=3 << 30))
        after = tuple(job.name for job in jobs)
        jobs.append(Job("report", ("exfm", "run", config, "seed=1"), waits_for=after, follows=False))
        return Fleet("ads", str(folder / "run"), str(folder / "logs"), tuple(jobs))

    @pytest.fixture
    def start(self, tmp_path: Path) -> Iterator[Callable[..., RunningJob]]:
        """Starts jobs of Python code under the launcher, and kills those that are left."""
        if not self.component.starts_jobs():
            pytest.skip("it writes files, and starts no job")
        launcher = self.make(self.configs[0])
        launcher.open(Fleet("ads", str(tmp_path), str(tmp_path / "logs"), ()))
        running: list[RunningJob] = []

        def start(code: str, *arguments: str, name: str = "train-vm") -> RunningJob:
            command = (sys.executable, "-S", "-c", code, *arguments)
            job: RunningJob = launcher.start(Job(name, command, memory_bytes=1 << 20))
            running.append(job)
            return job

        try:
            yield start
        finally:
            for job in running:
                job.kill()
            launcher.close()

    def test_a_job_ends_with_its_status(self, start: Callable[..., RunningJob], tmp_path: Path) -> None:
        """The status of the command is that of the job, which runs in the folder of this process."""
        where = tmp_path / "where"
        done = start(f"import os; open({str(where)!r}, 'w').write(os.getcwd()); raise SystemExit(3)")
        assert done.location, "it does not say where the job runs"
        assert _ended(done) == 3, f"a job that exits with status 3 ends with {done.poll()}"
        assert done.poll() == 3, "asked again, it gives another status"
        assert where.read_text() == str(Path.cwd()), "a job runs in another folder, where relative paths mean others"

    def test_a_job_that_is_stopped_may_finish(self, start: Callable[..., RunningJob], tmp_path: Path) -> None:
        """``stop`` sends SIGTERM, after which a job keeps what it has committed."""
        ready, kept = tmp_path / "ready", tmp_path / "kept"
        handler = f"lambda *_: (open({str(kept)!r}, 'w').close(), exit(0))"
        job = start(
            f"import signal, time; signal.signal(signal.SIGTERM, {handler}); "
            f"open({str(ready)!r}, 'w').close(); time.sleep(600)"
        )
        _wait(ready.exists)
        assert job.poll() is None, "a running job has a status"
        job.stop()
        assert _ended(job) is not None
        assert kept.exists(), "a job that is stopped does not get SIGTERM"

    def test_a_job_that_is_killed_leaves_no_process(self, start: Callable[..., RunningJob], tmp_path: Path) -> None:
        """A process that a job has started would go on writing into the run."""
        beats = tmp_path / "beats"
        job = start(_BEATS, str(beats))
        _wait(lambda: beats.exists() and beats.stat().st_size > 2)
        job.kill()
        _wait(lambda: job.poll() is not None)
        _wait(lambda: _is_still(beats))

    def test_a_job_runs_once(self, start: Callable[..., RunningJob]) -> None:
        """Another `exfm up` of the run leaves a running job alone, and may start it when it has ended."""
        first = start("import time; time.sleep(600)")
        with pytest.raises(RunsAlreadyError):
            start("import time; time.sleep(600)")
        other = start("", name="train-fm")
        assert _ended(other) == 0, "another job cannot run beside it"
        first.kill()

        def starts_again() -> bool:
            try:
                return _ended(start("")) == 0
            except RunsAlreadyError:
                return False

        _wait(starts_again)

    def test_files_are_of_all_jobs(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        """Each job's command is in a file, under a relative path, and the same fleet gives the same files."""
        if not self.component.writes_files():
            pytest.skip("it starts jobs, and writes no file")
        fleet = self.fleet(tmp_path)
        files = self.make(fields).files(fleet)
        assert files == self.make(fields).files(fleet), "called twice, it gives other files"
        for name in files:
            path = PurePosixPath(name)
            assert not path.is_absolute() and ".." not in path.parts, f"{name} is not inside the user's folder"
        text = "\n".join(files.values())
        for job in fleet.jobs:
            for model in job.models:
                assert model in text, f"no file names the model {model!r} of {job.name}"


def _wait(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    until = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < until, "it takes longer than a minute"
        time.sleep(0.02)


def _ended(job: RunningJob) -> int | None:
    """Waits for the end of a job."""
    _wait(lambda: job.poll() is not None)
    return job.poll()


def _is_still(path: Path) -> bool:
    """Tells whether a file does not grow for five times the interval of its writer."""
    before = path.stat().st_size
    time.sleep(0.1)
    return path.stat().st_size == before
