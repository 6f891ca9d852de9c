"""Finds a model of a run, and a snapshot of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.resolved import parse_resolved
from exfm.errors import ConfigError, suggestion
from exfm.reporting.results import CONFIG_FILE
from exfm.storage.aliases import LATEST
from exfm.storage.snapshot_at import snapshot_at
from exfm.storage.snapshots import Snapshot
from exfm.storage.workspace import MissingFileError
from exfm.supervision.store import Store

logger = logging.getLogger(__name__)


def find_arm(experiment: Experiment, model: str) -> Arm:
    """Finds the model with a name; a control is called NAME.control.

    Raises:
        ConfigError: there is no such model.
    """
    arms = {arm.name: arm for arm in experiment.arms}
    if model not in arms:
        raise ConfigError(f"--model: no model is called {model!r}.{suggestion(model, arms)}")
    return arms[model]


def find_snapshot(experiment: Experiment, arm: Arm, store: Store, at: str = LATEST) -> Snapshot:
    """Finds a snapshot of a model.

    Args:
        at: a version, an alias, a time or ``latest``, see ``snapshot_at``.

    Raises:
        ConfigError: the run has no such snapshot, or trained another model under that name.
    """
    snapshot = snapshot_at(store.snapshots, arm.name, at)
    run_dir = experiment.run_dir
    kept = parse_resolved(store.workspace.read(CONFIG_FILE).decode())
    trained, asked = kept["models"].get(arm.base), experiment.as_dict()["models"][arm.base]
    if changed := _changed(trained, asked):
        raise ConfigError(f"{run_dir}: models.{arm.base} was trained with {changed}; the snapshot is not of this model")
    return snapshot


def load_snapshot(
    find: Callable[[], Snapshot], store: Store, into: Mapping[str, Tensor] | None = None
) -> tuple[Snapshot, dict[str, Tensor]]:
    """Loads a snapshot and its weights, again with a newer snapshot if a trainer retires the first meanwhile.

    Args:
        find: finds the snapshot.
        store: the run's folder.
        into: see ``SnapshotRegistry.load``.

    Raises:
        RunError: the snapshot is corrupt, or missing although no newer was published.
    """
    snapshot = find()
    while True:
        try:
            return snapshot, store.snapshots.load(snapshot.weights, into)
        except MissingFileError:
            newer = find()
            if newer == snapshot:  # not retired but lost: trying again would not end
                raise
            logger.warning("%s: snapshot %d was removed before it was read", snapshot.model, snapshot.version)
            snapshot = newer


def _changed(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """Describes the settings of a model that differ from those it was trained with."""
    # Learning rates and the gate may change while a run continues, because they do not belong to the model.
    changes: list[str] = []
    for key, value in asked.items():
        if key in trained and key not in ("optimizer", "gate") and trained[key] != value:
            changes.append(f"{key}: {trained[key]!r}, and is now {value!r}")
    return "; ".join(changes)
