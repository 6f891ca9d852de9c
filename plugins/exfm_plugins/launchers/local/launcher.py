"""Runs the jobs of an experiment as processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import ClassVar

from pydantic import Field

import exfm
from exfm.launch import Fleet, Job, JobProcess, LauncherConfig, RunningJob

_GIB = 1 << 30


class Local(exfm.Launcher):
    """Processes of this machine, at most as many at once as its memory holds.

    All jobs together compute on `cores` cores, and share them: a job that waits for others takes none. Jobs start
    while the memory that they need (`needs`, `models`) fits into `memory_gib`; the others wait until a job ends. Where
    jobs follow a stream for ever, all of them have to fit.

    A job is a process group with a lock, and a log file in the run's folder. It is killed with `exfm up`,
    whatever ends that (on Linux).

    Example::

        launcher:
          name: local
          memory_gib: 24
          models:
            fm: {cores: 2, memory_gib: 8}
    """

    name: ClassVar[str] = "local"
    is_default: ClassVar[bool] = True

    class Config(LauncherConfig):
        """Fields of `local`."""

        cores: int | None = Field(
            None, gt=0, description="Cores that all jobs together compute on; by default all that this process may use."
        )
        memory_gib: float | None = Field(
            None, gt=0, description="Memory for all jobs together, in GiB; by default that of the machine."
        )

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.memory_bytes = round(config.memory_gib * _GIB) if config.memory_gib else memory

    def open(self, fleet: Fleet) -> None:
        """Chooses the cores of the jobs, and checks that the jobs fit into the memory."""
        self._log_dir = fleet.log_dir
        for job in fleet.jobs:
            if job.memory_bytes > self.memory_bytes:
                raise ValueError(f"{job.name} needs {job.memory_bytes / _GIB:.1f} GiB: {self._remedy()}")
        endless = [job for job in fleet.jobs if job.follows]
        needed = sum(job.memory_bytes for job in endless)
        if needed > self.memory_bytes:
            raise ValueError(
                f"{len(endless)} jobs that follow the stream need {needed / _GIB:.1f} GiB at once: {self._remedy()}, "
                "launcher.group_size for fewer jobs, or give --until-done, with which jobs wait for room"
            )
        if self.config.cores is not None and hasattr(os, "sched_setaffinity"):
            # Jobs inherit it; the kernel keeps all of their threads on these cores.
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: self.config.cores])

    def _remedy(self) -> str:
        return (
            f"launcher.memory_gib is {self.memory_bytes / _GIB:.1f}. Raise it, correct the estimate by "
            "launcher.needs.memory_gib or launcher.models.NAME.memory_gib"
        )

    def has_room(self, job: Job, running: Collection[Job]) -> bool:
        """Tells whether the job's memory is free."""
        return job.memory_bytes + sum(other.memory_bytes for other in running) <= self.memory_bytes

    def start(self, job: Job) -> RunningJob:
        """Starts the process."""
        return JobProcess(job, self._log_dir)
