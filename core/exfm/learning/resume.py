"""Loads a model's newest snapshot to go on training from it."""

from __future__ import annotations

import sys

from torch import Tensor

from exfm.errors import RunError
from exfm.learning.snapshot_loader import first_readable, unreadable_elsewhere
from exfm.learning.trainer import Trainer
from exfm.storage.finite import check_snapshot
from exfm.storage.snapshots import Snapshot, SnapshotRegistry, same_on_all


def load_newest(trainer: Trainer, snapshots: SnapshotRegistry) -> tuple[Snapshot, dict[str, Tensor]] | None:
    """Loads weights and training state of the newest snapshot that can be read, held or published.

    A corrupt snapshot is named in a warning, and the snapshot before it is loaded.

    Returns:
        The snapshot, and its training state; None without snapshots.

    Raises:
        RunError: there are snapshots and none can be read, or a snapshot is not finite.
    """
    candidates = snapshots.newest_first(trainer.arm.name, sys.maxsize)
    loaded: dict[str, Tensor] = {}

    def load(snapshot: Snapshot) -> RunError | None:
        weights, training, error = _read(trainer, snapshots, snapshot)
        # Agreed before loading, so that all processes go on from the same snapshot.
        if not trainer.plan.process_group.all_agree(error is None):
            return error or unreadable_elsewhere(snapshot)
        for tensors in (weights, training):
            check_snapshot(snapshot, tensors, trainer.constants, snapshots.workspace.url)
        trainer.load_weights(weights)
        trainer.load_training_state(training)
        trainer.learned = set(snapshot.learned)
        loaded.update(training)
        return None

    snapshot = first_readable(same_on_all(trainer.plan.process_group, candidates), load, "going back to")
    return None if snapshot is None else (snapshot, loaded)


def _read(
    trainer: Trainer, snapshots: SnapshotRegistry, snapshot: Snapshot
) -> tuple[dict[str, Tensor], dict[str, Tensor], RunError | None]:
    """Reads a snapshot's weights and training state; returns the error if they cannot be read."""
    try:
        memory = trainer.memory()
        weights = snapshots.load(snapshot.weights, memory)
        return weights, snapshots.load(snapshot.training, memory), None
    except RunError as error:
        return {}, {}, error
