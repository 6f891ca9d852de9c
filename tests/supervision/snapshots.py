"""Writes snapshots without a model."""

from __future__ import annotations

from torch import Tensor

from exfm.interfaces.data_source import Window
from exfm.interfaces.process_group import SINGLE_PROCESS
from exfm.storage.hashing import FileRecord
from exfm.storage.shard_writer import plan_shards
from exfm.storage.snapshots import SnapshotRegistry


def write_snapshot(
    snapshots: SnapshotRegistry, window: Window, weights: dict[str, Tensor], training: dict[str, Tensor]
) -> dict[str, FileRecord]:
    """Writes a snapshot of a model called vm, as a single process does; returns its files for a commit."""
    shards = [plan_shards(state, SINGLE_PROCESS) for state in (weights, training)]
    return snapshots.write("vm", window, shards[0], shards[1], SINGLE_PROCESS)
