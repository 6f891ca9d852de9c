"""Runs a job beside an actor of Ray, on the actor's machine."""

from __future__ import annotations

import os
from pathlib import Path

from exfm.launch import Job, JobProcess, RunsAlreadyError


class Runner:
    """Starts a job as a process, which ends with the process of the actor.

    Args:
        folder: the folder of the call of `exfm up`, to which relative paths belong.
        threads: the caller's ``OMP_NUM_THREADS``, which holds for all jobs; None where it is not set.
    """

    def __init__(self, job: Job, log_dir: str, folder: str, threads: str | None) -> None:
        if Path(folder).is_dir():  # it is not on another machine without the folder, where paths are URLs
            os.chdir(folder)
        # Ray sets it for its own processes, to the cores of the actor.
        os.environ.pop("OMP_NUM_THREADS", None)
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        self._job, self._log_dir = job, log_dir
        self._process: JobProcess | None = None

    def start(self) -> str:
        """Starts the job, and returns an empty text; if another process runs it, a message."""
        try:
            self._process = JobProcess(self._job, self._log_dir)
        except RunsAlreadyError as error:
            return str(error)
        return ""

    def poll(self) -> int | None:
        """Returns the exit status; None while the job runs."""
        assert self._process is not None
        return self._process.poll()

    def stop(self) -> None:
        """Asks the job to end."""
        if self._process is not None:
            self._process.stop()

    def kill(self) -> None:
        """Ends all processes of the job."""
        if self._process is not None:
            self._process.kill()
