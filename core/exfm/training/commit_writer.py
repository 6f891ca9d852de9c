"""Commits finished windows, at once or while training goes on: first files and state, then the manifests."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exfm.distributed.row_gatherer import RowGatherer
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
        previous: index of the window that it had committed before.
        read: the state of the stream in which the window was read.
        counters: what the manifest records.
        supervised: what the supervision's manifest records.
        predictions: the file of its rows; of a window without rows nothing is kept.
        supervision: the same, where the model supervises.
        state: weights and training state; None of a window without rows.
        needed_us: says for which time a snapshot may still be wanted.
    """

    name: str
    store: Store
    window: Window
    previous: int
    read: WindowRead
    counters: Mapping[str, Any]
    supervised: Mapping[str, float]
    predictions: RowGatherer
    supervision: RowGatherer | None
    state: tuple[dict[str, Tensor], dict[str, Tensor]] | None
    needed_us: Callable[[Window], int]

    def write(self) -> None:
        """Makes the window's supervision visible, then its predictions and the new snapshot."""
        log, snapshots = self.store.log, self.store.snapshots
        files: Mapping[str, FileRecord]
        if self.supervision is not None:
            files = self.supervision.close() if self.state else {}
            try:
                log.add("supervise", self.name, self._commit(self.supervised, files))
            except OtherContentError as error:
                # As where a job was killed between the two manifests, and goes on with another number of processes.
                # Students may have read what stands; should it be another job's, the second manifest is refused too.
                logger.warning("%s", error)
                files = log.load("supervise", self.name, self.window.index).files
            remove_orphans(self.store.workspace, files.values())
        files = {}
        if self.state:
            files = self.predictions.close() | snapshots.write(self.name, self.window, *self.state)
        if not log.add("train", self.name, self._commit(self.counters, files)):
            logger.warning("window %s of %r: another job had committed it, with equal content", self.window, self.name)
        remove_orphans(self.store.workspace, files.values())
        snapshots.retire(self.name, self.needed_us(self.window))

    def _commit(self, counters: Mapping[str, Any], files: Mapping[str, FileRecord]) -> Commit:
        return Commit(self.window, counters, files, self.previous, self.read)

    def discard(self) -> None:
        """Leaves nothing behind of files that were not completed."""
        self.predictions.discard()
        if self.supervision is not None:
            self.supervision.discard()


class ReusableBuffers:
    """Copies tensors into reusable buffers, because allocating is slower than copying."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies tensors; the copies hold until the next call."""
        self._kept = {name: self._room(name, tensor).copy_(tensor) for name, tensor in tensors.items()}
        return self._kept

    def _room(self, name: str, tensor: Tensor) -> Tensor:
        kept = self._kept.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            return torch.empty_like(tensor)
        return kept


class CommitWriter:
    """Commits windows in order; writing a window begins when the window before it is written.

    Args:
        background: whether the caller goes on meanwhile. The tensors that it hands over must then be copies, to be made
            when ``wait`` has returned.
    """

    def __init__(self, background: bool) -> None:
        self.background = background
        self._thread = ThreadPoolExecutor(1, "saving") if background else None
        self._writing: Future[None] | None = None

    def do(self, ended: Sequence[WindowCommit]) -> None:
        """Writes the commits of a window in order, up to the first that fails.

        Raises:
            Exception: the failure of writing this window, or in the background that of the window before.
        """
        self.wait()
        if self._thread is None:
            _write(ended)
        else:
            self._writing = self._thread.submit(_write, ended)

    def settle(self) -> None:
        """Returns when nothing is being written any more; ``wait`` raises a failure."""
        if self._writing is not None:
            wait([self._writing])

    def wait(self) -> None:
        """Returns when everything is written.

        Raises:
            Exception: the failure of the writing.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _write(ended: Sequence[WindowCommit]) -> None:
    with ExitStack() as stack:
        for commit in ended:
            stack.callback(commit.discard)
        for commit in ended:
            commit.write()
