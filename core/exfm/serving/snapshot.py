"""Finds a model of a run and its newest snapshot."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.resolved import parse_resolved
from exfm.errors import ConfigError, suggestion
from exfm.reporting.results import CONFIG_FILE
from exfm.storage.snapshots import Snapshot
from exfm.storage.workspace import MissingFileError
from exfm.supervision.store import Store

logger = logging.getLogger(__name__)


def find_arm(experiment: Experiment, model: str) -> Arm:
    """The model of that name; a control is called NAME.control.

    Raises:
        ConfigError: there is none.
    """
    arms = {arm.name: arm for arm in experiment.arms}
    if model not in arms:
        raise ConfigError(f"--model: no model is called {model!r}.{suggestion(model, arms)}")
    return arms[model]


def find_snapshot(experiment: Experiment, arm: Arm, store: Store, version: int | None = None) -> Snapshot:
    """A published version of a model, by default the newest.

    Raises:
        ConfigError: the run has none, or not this one, or was of another model of that name.
    """
    run_dir = experiment.run_dir
    published = {one.version: one for one in store.snapshots.newest_first(arm.name, sys.maxsize)}
    if not published:
        raise ConfigError(f"{run_dir}: there is no snapshot of {arm.name!r}; `exfm run` or `exfm train` publishes them")
    if version is not None and version not in published:
        there = ", ".join(map(str, sorted(published)))
        raise ConfigError(
            f"{run_dir}: there is no snapshot {version} of {arm.name!r}, or no longer; there are: {there}"
        )
    snapshot = published[max(published) if version is None else version]
    kept = parse_resolved(store.workspace.read(CONFIG_FILE).decode())
    trained, asked = kept["models"].get(arm.base), experiment.as_dict()["models"][arm.base]
    if changed := _changed(trained, asked):
        raise ConfigError(f"{run_dir}: models.{arm.base} was trained with {changed}; the snapshot is not of this model")
    return snapshot


def load_snapshot(
    find: Callable[[], Snapshot], store: Store, into: Mapping[str, Tensor] | None = None
) -> tuple[Snapshot, dict[str, Tensor]]:
    """A snapshot and its weights: where a trainer has removed it meanwhile, those of the one that is found then.

    Args:
        find: finds the snapshot.
        into: see ``SnapshotRegistry.load``.

    Raises:
        RunError: it is corrupt, or missing though no trainer has published another.
    """
    snapshot = find()
    while True:
        try:
            return snapshot, store.snapshots.load(snapshot.weights, into)
        except MissingFileError:
            newer = find()
            if newer == snapshot:
                raise
            logger.warning("%s: snapshot %d was removed before it was read", snapshot.model, snapshot.version)
            snapshot = newer


def _changed(trained: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    # A run may go on with other rates, which are no part of the model.
    different = [key for key in asked if key in trained and key != "optimizer" and trained[key] != asked[key]]
    return "; ".join(f"{key}: {trained[key]!r}, and is now {asked[key]!r}" for key in different)
