"""Writes the jobs of an experiment as a DAG of Airflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

import exfm
from exfm.launch import Fleet, LauncherConfig
from exfm_plugins.launchers.templates import render


class Airflow(exfm.Launcher):
    """A DAG for Airflow 2 or 3, with a task for each job, in a file for Airflow's folder of DAGs.

    Jobs do all that is there and end, each after those that it waits for; the schedule starts them again. Airflow's
    workers have exfm on their path, and see the run's folder and the data. Cores and memory are the executor's matter.

    Example::

        launcher: {name: airflow, schedule: "@hourly", folder: /srv/exfm}
    """

    name: ClassVar[str] = "airflow"
    files_until_done: ClassVar[bool] = True

    class Config(LauncherConfig):
        """Fields of `airflow`."""

        schedule: str = Field("@daily", min_length=1, description="Schedule of the DAG: a preset or a cron expression.")
        folder: str = Field("/", pattern=r"^/", description="Folder of the commands, to which relative paths belong.")
        pool: str = Field(
            "", description="Pool of the tasks, by which Airflow limits how many run; by default its own."
        )

    config: Config

    def files(self, fleet: Fleet) -> Mapping[str, str]:
        """Writes the DAG."""
        text = render(
            "airflow", "dag.py", name=fleet.name, dag=f"exfm_{fleet.name}", jobs=fleet.jobs, config=self.config
        )
        return {f"exfm_{fleet.name}.py": text}
