"""A window of a stage that is over: what remains is to write it and to commit it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from exfm.interfaces.data_source import Window
from exfm.supervision.commits import Commit, OtherContentError, WindowRead
from exfm.supervision.hashing import FileRecord
from exfm.supervision.orphans import remove_orphans
from exfm.supervision.store import Store
from exfm.training.gathered import GatheredRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EndedWindow:
    """What a stage leaves of a window.

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
    predictions: GatheredRows
    supervision: GatheredRows | None
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
