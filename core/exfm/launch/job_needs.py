"""Decides the cores and the memory of a job, by the experiment file or by an estimate from its models' tables."""

from __future__ import annotations

from collections.abc import Collection

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.launcher import LauncherConfig

_PROCESS_BYTES = 1 << 30
"""Memory of a job besides tables: 0.4 GiB of libraries, 0.5 GiB of rows that are merged by time, and its chunks."""

_COPIES = 3
"""A table's weights, its optimizer's sums, and as much again while they are read and written."""


def table_bytes(experiment: Experiment, arm: Arm) -> int:
    """Estimates the memory that the tables of an arm take in training."""
    rows = sum(experiment.schema.select(arm.config.features).tables().values())
    return rows * arm.config.embedding_dim * 4 * _COPIES  # fp32


def job_needs(experiment: Experiment, config: LauncherConfig, models: Collection[str]) -> tuple[float, int]:
    """Returns the cores and the bytes of memory of a job with some models, the most that any of them needs.

    Raises:
        ConfigError: the launcher's section names a model that there is not.
    """
    for name in config.models:
        # Frozen teachers are not under ``models``, and yet have a job, which labels.
        if name not in experiment.config.models and name not in experiment.frozen:
            raise ConfigError(
                f"launcher.models: no model is called {name!r}.{suggestion(name, experiment.config.models)}"
            )
    # The section's needs only stand in: they must not raise smaller needs that were written for a model.
    needs = [config.models[model] for model in models if model in config.models] or [config.needs]
    memory_gib = max((need.memory_gib for need in needs if need.memory_gib is not None), default=None)
    if memory_gib is not None:
        memory_bytes = round(memory_gib * (1 << 30))
    else:
        arms = [arm for arm in experiment.arms if arm.base in models]
        memory_bytes = _PROCESS_BYTES + sum(table_bytes(experiment, arm) for arm in arms)
    return max(need.cores for need in needs), memory_bytes
