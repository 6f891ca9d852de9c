"""Launchers: where the jobs of an experiment run."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_launchers() -> list[exfm.LazyComponent]:
    """Offers the built-in launchers."""
    return [
        exfm.LazyComponent("airflow", "exfm_plugins.launchers.airflow.launcher:Airflow"),
        exfm.LazyComponent("kubernetes", "exfm_plugins.launchers.kubernetes.launcher:Kubernetes"),
        exfm.LazyComponent("local", "exfm_plugins.launchers.local.launcher:Local"),
        exfm.LazyComponent("ray", "exfm_plugins.launchers.ray.launcher:Ray"),
        exfm.LazyComponent("skypilot", "exfm_plugins.launchers.skypilot.launcher:Skypilot"),
        exfm.LazyComponent("slurm", "exfm_plugins.launchers.slurm.launcher:Slurm"),
    ]
