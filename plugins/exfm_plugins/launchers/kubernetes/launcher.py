"""Writes the jobs of an experiment as Jobs of Kubernetes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

import exfm
from exfm.launch import Fleet, LauncherConfig
from exfm_plugins.launchers.templates import label, labels, render

_NAME = r"^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"


class Kubernetes(exfm.Launcher):
    """A Job of Kubernetes for each job, for `kubectl apply -f FOLDER`.

    Jobs follow the stream and wait for each other's files by themselves, because Kubernetes has no order of Jobs. With
    `queue` they begin suspended, and Kueue admits them. A Job cannot be changed: apply the files of added students
    alone, whose names are new.

    Example::

        launcher: {name: kubernetes, image: "registry.example/exfm:0.1.0", queue: cpu, claim: runs}
    """

    name: ClassVar[str] = "kubernetes"

    class Config(LauncherConfig):
        """Fields of `kubernetes`."""

        image: str = Field("exfm:latest", min_length=1, description="Image that has exfm and the experiment file.")
        namespace: str = Field("default", pattern=_NAME, min_length=1, description="Namespace of the Jobs.")
        queue: str = Field("", pattern=_NAME, description="Local queue of Kueue; none by default.")
        claim: str = Field(
            "", pattern=_NAME, description="PersistentVolumeClaim with runs and data; by default they are at URLs."
        )
        mount: str = Field("/exfm", pattern=r"^/", description="Where it is mounted: the folder of relative paths.")

    config: Config

    def files(self, fleet: Fleet) -> Mapping[str, str]:
        """Writes a file per job."""
        names = labels([f"{fleet.name}-{job.name}" for job in fleet.jobs])
        files: dict[str, str] = {}
        for job in fleet.jobs:
            name = names[f"{fleet.name}-{job.name}"]
            files[f"{job.name}.yaml"] = render(
                "kubernetes",
                "job.yaml",
                name=name,
                fleet=label(fleet.name, 63),
                job=job,
                config=self.config,
                mebibytes=-(-job.memory_bytes // (1 << 20)),
            )
        return files
