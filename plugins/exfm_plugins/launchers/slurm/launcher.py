"""Writes the jobs of an experiment as scripts for Slurm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

import exfm
from exfm.launch import Fleet, LauncherConfig
from exfm_plugins.launchers.templates import render


class Slurm(exfm.Launcher):
    """Scripts for `sbatch`, and `submit.sh`, which submits each after the jobs that it waits for.

    Jobs do all that is there and end; submit them again, from cron or `scrontab`, as the stream grows. A job that is
    requeued goes on after its last committed window. exfm is on the path of the machines, which see the run's folder
    and the data.

    Example::

        launcher: {name: slurm, partition: cpu, time: "24:00:00"}
    """

    name: ClassVar[str] = "slurm"
    files_until_done: ClassVar[bool] = True

    class Config(LauncherConfig):
        """Fields of `slurm`."""

        partition: str = Field("", pattern=r"^[\w.,-]*$", description="Partitions; by default the cluster's.")
        account: str = Field("", pattern=r"^[\w.-]*$", description="Account; by default the user's.")
        time: str = Field(
            "", pattern=r"^[\d:-]*$", description="Limit of time, such as 24:00:00; by default the partition's."
        )

    config: Config

    def files(self, fleet: Fleet) -> Mapping[str, str]:
        """Writes a script per job, and the script that submits them."""
        files: dict[str, str] = {}
        submitted = []
        for number, job in enumerate(fleet.jobs):
            files[f"{job.name}.sbatch"] = render(
                "slurm",
                "job.sbatch",
                name=f"{fleet.name}-{job.name}",
                command=job.command,
                cpus=math.ceil(job.cores),
                threads=job.threads,
                megabytes=-(-job.memory_bytes // (1 << 20)),
                # In #SBATCH lines a space ends a value, and there is no shell that would read quotes.
                log_dir=fleet.log_dir.replace(" ", "\\ "),
                partition=self.config.partition,
                account=self.config.account,
                time=self.config.time,
            )
            variables = [f"job_{fleet.jobs.index(other)}" for other in fleet.jobs if other.name in job.waits_for]
            submitted.append(
                {"variable": f"job_{number}", "name": job.name, "file": f"{job.name}.sbatch", "after": variables}
            )
        files["submit.sh"] = render("slurm", "submit.sh", name=fleet.name, jobs=submitted, log_dir=fleet.log_dir)
        return files
