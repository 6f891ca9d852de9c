"""Writes the jobs of an experiment as tasks of SkyPilot."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

import exfm
from exfm.launch import Fleet, LauncherConfig
from exfm_plugins.launchers.templates import labels, render


class Skypilot(exfm.Launcher):
    """A task of SkyPilot for each job, for `sky jobs launch`, which recovers it where a machine is lost.

    Jobs follow the stream, and wait for each other's files by themselves: run and data are at URLs.

    Example::

        launcher: {name: skypilot, infra: aws, spot: true, setup: "pip install 'exfm[cpu,s3]'"}
    """

    name: ClassVar[str] = "skypilot"

    class Config(LauncherConfig):
        """Fields of `skypilot`."""

        infra: str = Field("", description="Infrastructure, such as aws/us-east-1 or k8s; by default SkyPilot chooses.")
        spot: bool = Field(False, description="Machines that may be taken away: a job goes on on another.")
        setup: str = Field("", description="Command that installs exfm; by default the image has it.")
        workdir: str = Field(".", min_length=1, description="Folder with the experiment file, which is sent along.")

    config: Config

    def files(self, fleet: Fleet) -> Mapping[str, str]:
        """Writes a file per job."""
        names = labels([f"{fleet.name}-{job.name}" for job in fleet.jobs])
        files: dict[str, str] = {}
        for job in fleet.jobs:
            files[f"{job.name}.yaml"] = render(
                "skypilot",
                "task.yaml",
                name=names[f"{fleet.name}-{job.name}"],
                job=job,
                config=self.config,
                cpus=math.ceil(job.cores),
                gigabytes=math.ceil(job.memory_bytes / 1e9),
            )
        return files
