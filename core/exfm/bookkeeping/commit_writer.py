"""Commits finished windows, at once or in the background: files and state of all models first, then their manifests.

The disk is waited for once for all of them. Then a thread removes what the window before needed and this does not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exfm.config.keep_section import NEWEST, Kept
from exfm.distributed.sharded_rows import ShardedRowWriter
from exfm.interfaces.data_source import Window
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.storage.commits import STAGES, Commit, NewCommit, OtherContentError, WindowRead
from exfm.storage.hashing import FileRecord
from exfm.storage.orphans import remove_orphans
from exfm.storage.shard_writer import Shards
from exfm.supervision.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WindowCommit:
    """Holds files and state of a finished window, waiting to be committed.

    Attributes:
        name: of the model.
        previous: index of the window that the model had committed before.
        read: the state of the stream in which the window was read.
        counters: recorded in the manifest.
        supervised: recorded in the supervision's manifest.
        predictions: the files of predictions; discarded if the window has no rows.
        supervision: the files of supervision; None where the model writes none.
        state: this process's shards of the weights and the training state; None of a window without rows.
        needed_us: returns the earliest time of which a snapshot may still be read, after this window.
        process_group: the processes that write the window; of the thread that calls ``write``.
        keep_snapshots: the windows whose snapshots stay in any case.
    """

    name: str
    store: Store
    window: Window
    previous: int
    read: WindowRead
    counters: Mapping[str, Any]
    supervised: Mapping[str, float]
    predictions: ShardedRowWriter
    supervision: ShardedRowWriter | None
    state: tuple[Shards, Shards] | None
    needed_us: Callable[[Window], int]
    process_group: ProcessGroup
    keep_snapshots: Kept = NEWEST

    def complete(self) -> list[NewCommit]:
        """Completes the window's files; returns the commit of its supervision, then that of its model.

        A collective operation: each process writes its shards, and rank zero alone gets the commits.
        """
        supervised: Mapping[str, FileRecord] = {}
        trained: Mapping[str, FileRecord] = {}
        if self.state:
            trained = self.store.snapshots.write(self.name, self.window, *self.state, self.process_group)
        if not self.process_group.is_rank_zero:
            return []
        if self.state:
            if self.supervision is not None:
                supervised = self.supervision.close()
            trained = {**self.predictions.close(), **trained}
        commits: list[NewCommit] = []
        # Supervision first: a kill in between leaves students with supervision to read, and no model ahead of it.
        if self.supervision is not None:
            commits.append(NewCommit("supervise", self.name, self._commit(self.supervised, supervised)))
        commits.append(NewCommit("train", self.name, self._commit(self.counters, trained)))
        return commits

    def _commit(self, counters: Mapping[str, Any], files: Mapping[str, FileRecord]) -> Commit:
        return Commit(self.window, counters, files, self.previous, self.read)

    def cleanup(self) -> Cleanup:
        """Returns the work that is left when the window is committed."""
        return Cleanup(self.store, self.name, self.window, self.needed_us, self.keep_snapshots)

    def discard(self) -> None:
        """Removes files that were not completed."""
        self.predictions.discard()
        if self.supervision is not None:
            self.supervision.discard()


@dataclass(frozen=True)
class Cleanup:
    """Removes files that nobody needs once a window is committed; holds no tensors. Attributes as ``WindowCommit``."""

    store: Store
    name: str
    window: Window
    needed_us: Callable[[Window], int]
    keep_snapshots: Kept

    def run(self) -> None:
        """Removes files of the window that no manifest names, and snapshots that no stage can ask for any more."""
        log = self.store.log
        for stage in STAGES:
            # By the manifests, which decide the files that count where several writers have left some.
            if log.has(stage, self.name, self.window.index):
                remove_orphans(self.store.workspace, log.load(stage, self.name, self.window.index).files.values())
        self.store.snapshots.retire(self.name, self.needed_us(self.window), self.keep_snapshots)


class ReusableBuffers:
    """Copies tensors into reusable buffers, because allocating is slower than copying."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies tensors; the next call overwrites the copies."""
        # In place, so that the writer must have finished with the previous copies.
        self._buffers = {name: self._buffer(name, tensor).copy_(tensor) for name, tensor in tensors.items()}
        return self._buffers

    def _buffer(self, name: str, tensor: Tensor) -> Tensor:
        buffer = self._buffers.get(name)
        # A table that has grown, or a tensor that is new, does not fit.
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            return torch.empty_like(tensor, device="cpu")
        return buffer


class CommitWriter:
    """Commits windows in order; writing a window begins when the window before it is written and cleaned up.

    Args:
        background: whether to write in a thread while the caller goes on. The caller must then hand over copies of
            tensors, and make them after ``wait`` has returned, because training overwrites the originals.
        process_group: the processes that write.

    Attributes:
        process_group: the processes, for collectives of the thread that writes.
    """

    def __init__(self, background: bool, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
        self.background = background
        self.process_group = process_group.for_thread() if background else process_group
        self._thread = ThreadPoolExecutor(1, "saving")  # a single thread, so that windows are written in order
        self._pending: Future[None] | None = None

    def write(self, commits: Sequence[WindowCommit]) -> None:
        """Writes the commits of a window in order, and discards the commits after a failure.

        Raises:
            Exception: the failure of writing this window, or in the background that of the window before; or the
                failure of cleaning up after the window before.
        """
        self.wait()
        cleanups: list[Cleanup] = []
        if self.process_group.is_rank_zero:
            cleanups = [commit.cleanup() for commit in commits]
        if self.background:
            self._pending = self._thread.submit(_write_and_clean_up, commits, cleanups)
        else:
            _write_all(commits)
            # In the thread, because a disk takes longer to free a file's blocks than to store them.
            self._pending = self._thread.submit(_clean_up, cleanups)

    def settle(self) -> None:
        """Waits until nothing is being written or removed, without raising a failure, which ``wait`` raises."""
        if self._pending is not None:
            wait([self._pending])

    def wait(self) -> None:
        """Waits until everything is written and cleaned up.

        Raises:
            Exception: the failure of the writing, or of the cleaning up.
        """
        # Cleared first, so that a failure is raised once.
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def _write_and_clean_up(commits: Sequence[WindowCommit], cleanups: Sequence[Cleanup]) -> None:
    _write_all(commits)
    _clean_up(cleanups)


def _clean_up(cleanups: Sequence[Cleanup]) -> None:
    for cleanup in cleanups:
        cleanup.run()


def _write_all(commits: Sequence[WindowCommit]) -> None:
    """Commits a window of all models: completes every file, waits for the disk once, and creates the manifests."""
    if not commits:
        return
    with ExitStack() as stack:
        # Of every commit, after the last: of a file that was completed nothing is left to discard.
        for commit in commits:
            stack.callback(commit.discard)
        manifests: list[NewCommit] = []
        for commit in commits:
            manifests += commit.complete()
        if not manifests:  # another process than rank zero
            return
        with commits[0].store.log.adding(manifests) as add:
            for manifest in manifests:
                _add(add, manifest)


def _add(add: Callable[[NewCommit], bool], new: NewCommit) -> None:
    try:
        if not add(new) and new.stage == "train":
            logger.warning(
                "window %s of %r: another job had committed it, with equal content", new.commit.window, new.model
            )
    except OtherContentError as error:
        if new.stage == "train":
            raise
        # Not fatal: a job that was killed between the two manifests may go on with another number of processes, and
        # other bytes. The committed files stand, because students may have read them. If they are another job's, the
        # second manifest is refused too.
        logger.warning("%s", error)
