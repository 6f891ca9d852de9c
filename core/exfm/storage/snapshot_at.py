"""Finds the snapshot that a user names: by its version, an alias, a time, or as the latest."""

from __future__ import annotations

import logging
import sys

from exfm.errors import ConfigError, suggestion
from exfm.interfaces.duration import parse_time_us
from exfm.storage.aliases import LATEST
from exfm.storage.snapshots import Snapshot, SnapshotRegistry

logger = logging.getLogger(__name__)


def snapshot_at(registry: SnapshotRegistry, model: str, at: str) -> Snapshot:
    """Finds a stored snapshot of a model.

    Args:
        at: a version, an alias, ``latest``, or a time: of the newest snapshot that has trained on earlier rows only.

    Raises:
        ConfigError: nothing is called so, or the snapshot is no longer stored.
    """
    if at == LATEST:
        return _latest(registry, model)
    if at.isdecimal():
        return _version(registry, model, int(at))
    time_us = parse_time_us(at)
    if time_us is not None:
        return _trained_until(registry, model, at, time_us)
    return _alias(registry, model, at)


def _latest(registry: SnapshotRegistry, model: str) -> Snapshot:
    for snapshot in registry.newest_first(model, sys.maxsize):
        if not snapshot.held:
            return snapshot
    url = registry.workspace.url
    if registry.versions(model):
        raise ConfigError(
            f"{url}: every snapshot of {model!r} that is stored is held: {_stored(registry, model)}; `exfm snapshots "
            f"{url}` says why, and a version names one of them all the same"
        )
    raise ConfigError(f"{url}: there is no snapshot of {model!r}; `exfm run` or `exfm train` publishes them")


def _version(registry: SnapshotRegistry, model: str, version: int) -> Snapshot:
    # A window without rows has no manifest, or has a manifest without a snapshot.
    if registry.log.has("train", model, version) and registry.log.load("train", model, version).files:
        snapshot = registry.get(model, version)
        if registry.is_stored(snapshot):
            if snapshot.held:
                logger.warning("snapshot %d of %r is held: %s", version, model, "; ".join(snapshot.held.values()))
            return snapshot
    raise ConfigError(
        f"{registry.workspace.url}: there is no snapshot {version} of {model!r}, or no longer; there are: "
        f"{_stored(registry, model)}"
    )


def _trained_until(registry: SnapshotRegistry, model: str, at: str, time_us: int) -> Snapshot:
    # Retired snapshots too: an older snapshot in place of the one that is asked for would be a silent mistake.
    snapshot = next(registry.published(model, time_us), None)
    if snapshot is not None and registry.is_stored(snapshot):
        return snapshot
    problem = f"no snapshot of {model!r} was published by {at}"
    if snapshot is not None:
        problem = f"at {at} the snapshot of {model!r} was {snapshot.version}, which is not stored any more"
    raise ConfigError(f"{registry.workspace.url}: {problem}; there are: {_stored(registry, model)}")


def _alias(registry: SnapshotRegistry, model: str, at: str) -> Snapshot:
    targets = registry.aliases.targets(model)
    url = registry.workspace.url
    if at not in targets:
        raise ConfigError(
            f"{url}: no snapshot of {model!r} is called {at!r}: write a version, an alias, or a time such as "
            f"2026-01-31T12:00.{suggestion(at, [LATEST, *targets])} Versions: {_stored(registry, model)}."
        )
    try:
        return _version(registry, model, targets[at][-1])
    except ConfigError as error:
        advice = f"{at!r} points at it: move the alias with `exfm promote` or `exfm rollback`"
        raise ConfigError(f"{error}. {advice}") from None


def _stored(registry: SnapshotRegistry, model: str) -> str:
    """Lists the versions that are stored, for messages."""
    snapshots = registry.newest_first(model, sys.maxsize)
    return ", ".join(map(str, sorted(snapshot.version for snapshot in snapshots))) or "none"
