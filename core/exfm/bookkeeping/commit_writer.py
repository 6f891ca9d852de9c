"""Commits finished windows, at once or in the background: files and state first, manifests after them."""

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
from exfm.storage.commits import Commit, OtherContentError, WindowRead
from exfm.storage.hashing import FileRecord
from exfm.storage.orphans import remove_orphans
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
        state: weights and training state; None of a window without rows.
        needed_us: returns the earliest time of which a snapshot may still be read, after this window.
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
    state: tuple[dict[str, Tensor], dict[str, Tensor]] | None
    needed_us: Callable[[Window], int]
    keep_snapshots: Kept = NEWEST

    def write(self) -> None:
        """Commits the window's supervision, then its predictions and the new snapshot."""
        # Supervision first: a kill in between leaves students with supervision to read, and no model ahead of it.
        self._write_supervision()
        self._write_training()
        self.store.snapshots.retire(self.name, self.needed_us(self.window), self.keep_snapshots)

    def _write_supervision(self) -> None:
        if self.supervision is None:
            return
        log = self.store.log
        files: Mapping[str, FileRecord] = {}
        if self.state:
            files = self.supervision.close()
        try:
            log.add("supervise", self.name, self._commit(self.supervised, files))
        except OtherContentError as error:
            # Not fatal: a job that was killed between the two manifests may go on with another number of processes,
            # and other bytes. The committed files stand, because students may have read them. If they are another
            # job's, the second manifest is refused too.
            logger.warning("%s", error)
            files = log.load("supervise", self.name, self.window.index).files
        # After the manifest, which decides the files that count where several writers have left some.
        remove_orphans(self.store.workspace, files.values())

    def _write_training(self) -> None:
        log, snapshots = self.store.log, self.store.snapshots
        files: Mapping[str, FileRecord] = {}
        if self.state:
            files = self.predictions.close() | snapshots.write(self.name, self.window, *self.state)
        if not log.add("train", self.name, self._commit(self.counters, files)):
            logger.warning("window %s of %r: another job had committed it, with equal content", self.window, self.name)
        remove_orphans(self.store.workspace, files.values())

    def _commit(self, counters: Mapping[str, Any], files: Mapping[str, FileRecord]) -> Commit:
        return Commit(self.window, counters, files, self.previous, self.read)

    def discard(self) -> None:
        """Removes files that were not completed."""
        self.predictions.discard()
        if self.supervision is not None:
            self.supervision.discard()


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
            return torch.empty_like(tensor)
        return buffer


class CommitWriter:
    """Commits windows in order; writing a window begins when the window before it is written.

    Args:
        background: whether to write in a thread while the caller goes on. The caller must then hand over copies of
            tensors, and make them after ``wait`` has returned, because training overwrites the originals.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._thread: ThreadPoolExecutor | None = None
        if background:
            self._thread = ThreadPoolExecutor(1, "saving")  # a single thread, so that windows are written in order
        self._writing: Future[None] | None = None

    def write(self, commits: Sequence[WindowCommit]) -> None:
        """Writes the commits of a window in order, and discards the commits after a failure.

        Raises:
            Exception: the failure of writing this window, or in the background that of the window before.
        """
        self.wait()
        if self._thread is None:
            _write_all(commits)
        else:
            self._writing = self._thread.submit(_write_all, commits)

    def settle(self) -> None:
        """Waits until nothing is being written, without raising a failure, which ``wait`` raises."""
        if self._writing is not None:
            wait([self._writing])

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            Exception: the failure of the writing.
        """
        # Cleared first, so that a failure is raised once.
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _write_all(commits: Sequence[WindowCommit]) -> None:
    with ExitStack() as stack:
        # Of every commit, after the last: of a file that was completed nothing is left to discard.
        for commit in commits:
            stack.callback(commit.discard)
        for commit in commits:
            commit.write()
