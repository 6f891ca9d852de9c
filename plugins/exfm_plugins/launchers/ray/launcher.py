"""Runs the jobs of an experiment on a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import ray
from pydantic import Field
from ray.exceptions import GetTimeoutError, RayActorError

import exfm
from exfm.launch import Fleet, Job, LauncherConfig, RunningJob, RunsAlreadyError
from exfm_plugins.launchers.ray.runner import Runner

logger = logging.getLogger(__name__)

_KILL_S = 10.0
_LOST = -signal.SIGKILL


class Ray(exfm.Launcher):
    """An actor of Ray for each job, with the job's cores and memory as its resources: Ray chooses the machine.

    exfm is installed on all machines of the cluster, and the run's folder, the data and the folder of the call are URLs
    or on a disk that all of them see. A job whose resources are not free waits. It ends with its actor, and all actors
    end with `exfm up`. A job whose actor or machine dies is started again, wherever there is room.

    Example::

        launcher:
          name: ray
          address: auto
          needs: {cores: 0.5}
    """

    name: ClassVar[str] = "ray"

    class Config(LauncherConfig):
        """Fields of `ray`."""

        address: str | None = Field(
            None,
            description="Address of the cluster, as ray.init takes it; by default RAY_ADDRESS, or else a Ray of this "
            "machine that ends with the jobs.",
        )
        cores: int | None = Field(
            None, gt=0, description="Cores of a Ray of this machine; by default all. Not for a cluster."
        )

    config: Config

    def open(self, fleet: Fleet) -> None:
        """Connects to the cluster, or starts Ray here."""
        self._log_dir = str(Path(fleet.log_dir).absolute()) if "://" not in fleet.log_dir else fleet.log_dir
        self._connected_before = ray.is_initialized()
        if not self._connected_before:
            heeded = signal.getsignal(signal.SIGTERM)
            ray.init(
                address=self.config.address,
                num_cpus=self.config.cores,
                # A name is taken once in a namespace: so a job of a run has one actor, whoever starts it.
                namespace=f"exfm {fleet.run_dir}",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
            # Ray replaces the handler, by which exfm ends with its status.
            signal.signal(signal.SIGTERM, heeded)
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        for key, needed in (
            ("CPU", sum(job.cores for job in fleet.jobs if job.follows)),
            ("memory", sum(job.memory_bytes for job in fleet.jobs if job.follows)),
        ):
            if needed > there.get(key, 0):
                logger.warning(
                    "jobs that follow the stream need %g of Ray's resource %s, and the cluster has %g: the others wait "
                    "until it grows; launcher.needs, launcher.models and launcher.group_size decide what jobs need",
                    needed, key, there.get(key, 0),
                )  # fmt: skip

    def start(self, job: Job) -> RunningJob:
        """Creates the job's actor, which starts it when its resources are free."""
        actor = ray.remote(Runner).options(
            name=job.name, num_cpus=job.cores, memory=job.memory_bytes, max_restarts=0, max_task_retries=0
        )
        try:
            handle = actor.remote(job, self._log_dir, str(Path.cwd()), os.environ.get("OMP_NUM_THREADS"))
        except ValueError as error:  # the name is taken
            raise RunsAlreadyError(f"{job.name}: an actor of Ray runs it") from error
        return RayJob(job, handle, self._log_dir)

    def close(self) -> None:
        """Ends the connection, and a Ray of this machine with it."""
        if not self._connected_before:
            ray.shutdown()


class RayJob(RunningJob):
    """Controls a job by its actor, whose calls are answered later."""

    def __init__(self, job: Job, actor: Any, log_dir: str) -> None:
        self._job = job
        self._actor = actor
        self._log = f"{log_dir}/{job.name}.log"
        self._starting = actor.start.remote()
        self._polling: Any = None
        self._status: int | None = None

    @property
    def location(self) -> str:
        """Names the actor and the log file."""
        return f"Ray actor {self._job.name}, log {self._log}"

    def poll(self) -> int | None:
        """Returns the status that the actor has answered with, or that of SIGKILL where the actor is lost."""
        if self._status is not None:
            return self._status
        try:
            if self._starting is not None:
                if not _is_ready(self._starting):
                    return None
                taken = ray.get(self._starting)
                self._starting = None
                if taken:
                    self._end(1)
                    raise RunsAlreadyError(taken)
            if self._polling is None:
                self._polling = self._actor.poll.remote()
            if not _is_ready(self._polling):
                return None
            status, self._polling = ray.get(self._polling), None
            if status is not None:
                self._end(status)
        except RayActorError:
            self._end(_LOST)
        return self._status

    def stop(self) -> None:
        """Asks the job to end; an actor that still waits for its resources is removed."""
        if self._status is None and self.poll() is None:
            if self._starting is None:
                self._actor.stop.remote()
            else:
                self._end(_LOST)

    def kill(self) -> None:
        """Ends all processes of the job, and then the actor, with which the job's process would end in any case."""
        if self._status is None:
            with suppress(RayActorError, GetTimeoutError):
                # An actor that still waits for its resources would not answer.
                if self._starting is None or _is_ready(self._starting):
                    ray.get(self._actor.kill.remote(), timeout=_KILL_S)
            self._end(_LOST)

    def _end(self, status: int) -> None:
        """Keeps the status, and removes the actor, whose name is free then."""
        self._status = status
        ray.kill(self._actor)


def _is_ready(reference: Any) -> bool:
    """Tells whether a call is answered, without waiting for it."""
    ready, _ = ray.wait([reference], timeout=0)
    return bool(ready)
