"""Finds a model of a run, and a snapshot of the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.model_identity import differences, model_identities
from exfm.errors import ConfigError, suggestion
from exfm.mappings import by_name
from exfm.scheduling.identity import kept_record
from exfm.storage.aliases import LATEST
from exfm.storage.snapshot_at import snapshot_at
from exfm.storage.snapshots import Snapshot, TensorFiles
from exfm.storage.workspace import MissingFileError
from exfm.supervision.store import Store

T = TypeVar("T")
logger = logging.getLogger(__name__)


def find_arm(experiment: Experiment, model: str) -> Arm:
    """Finds the model with a name; a control is called NAME.control.

    Raises:
        ConfigError: there is no such model.
    """
    arms = by_name(experiment.arms)
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
    home = store.home(arm.name)
    snapshot = snapshot_at(home.store.snapshots, home.model, at)
    kept = kept_record(home.store, home.model)["identity"]
    identity = model_identities(experiment, experiment.as_dict(), store.frozen_versions)[arm.name]
    changes: list[str] = []
    for difference in differences(arm, kept, identity):
        # Where its rows come from does not matter here: a snapshot may predict another stream.
        if difference.path.startswith("model.") and not difference.is_free:
            key = difference.path.removeprefix("model.")
            changes.append(f"{key}: {difference.before!r}, and is now {difference.now!r}")
    if changes:
        raise ConfigError(
            f"{home.store.workspace.url}: models.{arm.base} was trained with {'; '.join(changes)}; "
            "the snapshot is not of this model"
        )
    return snapshot


def load_snapshot(
    find: Callable[[], Snapshot], read: Callable[[TensorFiles], Mapping[str, T]]
) -> tuple[Snapshot, Mapping[str, T]]:
    """Loads a snapshot and its weights, again with a newer snapshot if a trainer retires the first meanwhile.

    Args:
        find: finds the snapshot.
        read: reads its weights.

    Raises:
        RunError: the snapshot is corrupt, or missing although no newer was published.
    """
    snapshot = find()
    while True:
        try:
            return snapshot, read(snapshot.weights)
        except MissingFileError:
            newer = find()
            if newer == snapshot:  # not retired but lost: trying again would not end
                raise
            logger.warning("%s: snapshot %d was removed before it was read", snapshot.model, snapshot.version)
            snapshot = newer
