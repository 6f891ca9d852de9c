"""Loads published snapshots into a model that predicts with them, alike on all processes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

from exfm.errors import RunError
from exfm.interfaces.local_shards import StateTensor
from exfm.learning.trainer import Trainer
from exfm.storage.finite import check_snapshot
from exfm.storage.snapshots import Snapshot, SnapshotRegistry, same_on_all

logger = logging.getLogger(__name__)


def first_readable(
    candidates: Iterable[Snapshot], load: Callable[[Snapshot], RunError | None], use: str
) -> Snapshot | None:
    """Loads the first snapshot that can be read; returns None without snapshots.

    Args:
        candidates: newest first, the same on all processes.
        load: loads a snapshot, or returns the error on every process.
        use: words for the use of a snapshot, for warnings about those that cannot be read.

    Raises:
        RunError: there are snapshots, and none can be read.
    """
    failure: RunError | None = None
    for snapshot in candidates:
        error = load(snapshot)
        if error is None:
            return snapshot
        logger.warning("%s; %s the snapshot before it", error, use)
        failure = failure or error
    if failure is not None:
        raise failure
    return None


def unreadable_elsewhere(snapshot: Snapshot) -> RunError:
    """Returns the error of a process that can read a snapshot, where another process cannot."""
    return RunError(f"snapshot {snapshot.version} of {snapshot.model!r}: another process cannot read it")


class SnapshotLoader:
    """Overwrites a model's weights by those of snapshots.

    Args:
        trainer: a model of the snapshots' shape.
        snapshots: where they are published.
    """

    def __init__(self, trainer: Trainer, snapshots: SnapshotRegistry) -> None:
        self.trainer = trainer
        self.snapshots = snapshots
        self._loaded: Snapshot | None = None

    def newest(self, candidates: Iterator[Snapshot], use: str) -> Snapshot | None:
        """Loads the first snapshot that can be read; returns None without snapshots.

        Args:
            candidates: newest first; those of rank 0 count.
            use: words for the use of a snapshot, for warnings about those that cannot be read.

        Raises:
            RunError: there are snapshots, and none can be read.
        """
        return first_readable(same_on_all(self.trainer.plan.process_group, candidates), self.load, use)

    def load(self, snapshot: Snapshot) -> RunError | None:
        """Loads a snapshot's weights, unless they are loaded.

        Returns:
            The error, on every process, if any process cannot read them.
        """
        if snapshot == self._loaded:
            return None
        # Forgotten first, because the snapshot is read into the buffers that hold the previous snapshot.
        self._loaded = None
        weights: dict[str, StateTensor] = {}
        error: RunError | None = None
        group, destinations = self.trainer.plan.process_group, self.trainer.destinations()
        try:
            weights = self.snapshots.load(snapshot.weights, into=destinations, growth=self.trainer.growth)
        except RunError as unreadable:
            error = unreadable
        # All processes predict with the same snapshot.
        if group.all_agree(error is None):
            check_snapshot(snapshot, weights, self.trainer.constants, self.snapshots.workspace.url, group)
            self.trainer.load_weights(weights)
            self._loaded = snapshot
            return None
        return error or unreadable_elsewhere(snapshot)
