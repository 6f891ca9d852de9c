"""Loads a model's newest snapshot to go on training from it."""

from __future__ import annotations

import sys

from exfm.errors import RunError
from exfm.interfaces.local_shards import StateTensor
from exfm.learning.snapshot_loader import first_readable, unreadable_elsewhere
from exfm.learning.trainer import Trainer
from exfm.storage.finite import check_snapshot
from exfm.storage.snapshots import Snapshot, SnapshotRegistry, same_on_all


def load_newest(trainer: Trainer, snapshots: SnapshotRegistry) -> tuple[Snapshot, dict[str, StateTensor]] | None:
    """Loads weights and training state of the newest snapshot that can be read, held or published.

    A corrupt snapshot is named in a warning, and the snapshot before it is loaded.

    Returns:
        The snapshot, and its training state; None without snapshots.

    Raises:
        RunError: there are snapshots and none can be read, or a snapshot is not finite.
    """
    candidates = snapshots.newest_first(trainer.arm.name, sys.maxsize)
    loaded: dict[str, StateTensor] = {}

    def load(snapshot: Snapshot) -> RunError | None:
        weights, training, error = _read(trainer, snapshots, snapshot)
        # All processes go on from the same snapshot. If an older is read, it replaces all that this has written.
        group = trainer.plan.process_group
        if not group.all_agree(error is None):
            return error or unreadable_elsewhere(snapshot)
        for tensors in (weights, training):
            check_snapshot(snapshot, tensors, trainer.constants, snapshots.workspace.url, group)
        trainer.load_weights(weights)
        trainer.load_training_state(training)
        trainer.learned = set(snapshot.learned)
        loaded.update(training)
        return None

    snapshot = first_readable(same_on_all(trainer.plan.process_group, candidates), load, "going back to")
    return None if snapshot is None else (snapshot, loaded)


def _read(
    trainer: Trainer, snapshots: SnapshotRegistry, snapshot: Snapshot
) -> tuple[dict[str, StateTensor], dict[str, StateTensor], RunError | None]:
    """Reads this process's shards of a snapshot, into the model; returns the error if they cannot be read."""
    destinations = trainer.destinations()
    try:
        weights = snapshots.load(snapshot.weights, into=destinations, growth=trainer.growth)
        return weights, snapshots.load(snapshot.training, into=destinations, growth=trainer.growth), None
    except RunError as error:
        return {}, {}, error
