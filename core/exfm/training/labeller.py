"""Labels examples with earlier published snapshots: forward only, once per example however many students read it."""

from __future__ import annotations

import logging
import time

import torch

from exfm.config.checks import Arm
from exfm.distributed.chunk_exchange import SpreadChunk
from exfm.distributed.row_gatherer import RowGatherer
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.interfaces.duration import microseconds
from exfm.storage.commits import Commit, WindowRead
from exfm.storage.finite import check_snapshot
from exfm.storage.orphans import remove_orphans
from exfm.storage.snapshots import Snapshot, same_on_all
from exfm.supervision.joiner import SupervisionRows
from exfm.supervision.row_files import row_file, supervision_columns, supervision_schema
from exfm.supervision.store import Store
from exfm.training.model_output import ModelOutput
from exfm.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Labeller:
    """Supervises a teacher's students with the newest snapshot that the teacher's delay allows.

    Args:
        trainer: a model of the teacher's shape; its weights are replaced by those of snapshots.
        students: names of the arms that learn from it: their traffic is labelled, each example once.
    """

    def __init__(self, trainer: Trainer, store: Store, students: tuple[str, ...]) -> None:
        self.trainer = trainer
        self.process_group = trainer.plan.process_group
        self.teacher: Arm = trainer.arm
        self.name = trainer.arm.name
        self.store = store
        self.students = students
        self.delay_us = microseconds(trainer.arm.config.supervision.delay)
        self._loaded: Snapshot | None = None

    def begin(self, window: Window, read: WindowRead) -> None:
        """Opens the window's file and loads the snapshot that labels all its examples.

        The snapshot is chosen by the window's start alone, so that it does not depend on how the window is cut into
        chunks.

        Args:
            read: the state of the stream in which the window is read.

        Raises:
            RunError: there are snapshots that are old enough, and none can be read.
        """
        start = time.perf_counter()
        self._window, self._read = window, read
        self._previous = self.store.log.head("supervise", self.name)
        self._snapshot = self._newest(window.start_us - self.delay_us)
        self._examples = 0
        self._rows = RowGatherer(
            self.process_group,
            self.store.workspace,
            row_file("supervision", self.name, window.index),
            supervision_schema(self.teacher.tasks, self.name, self.trainer.embedding, self.trainer.vectors),
        )
        self._seconds = time.perf_counter() - start

    def label(self, chunk: SpreadChunk) -> SupervisionRows:
        """Supervises the union of the students' rows of a chunk; nothing before there is a snapshot."""
        start = time.perf_counter()
        snapshot = self._snapshot
        forward = ModelOutput(self.teacher.tasks, self.trainer.embedding, self.trainer.vectors)
        none = torch.zeros(0, dtype=torch.int64)
        parts = chunk.parts(none if snapshot is None else self._union(chunk), self.teacher.config.batch_size)
        if snapshot is not None:
            for batch, part in chunk.batches(parts, self.trainer.model):
                made = self.trainer.predict(batch).first(part.own)
                forward.add(made, snapshot.learned, snapshot.watermark_us)
        labelled = chunk.batch.only(frozenset(), none).select(parts.index)
        rows = forward.supervision(labelled)
        version = snapshot.version if snapshot is not None else -1
        self._rows.append(supervision_columns(rows, self._window.index, version), parts.order)
        self._examples += sum(sum(part.counts) for part in parts.batches)
        self._seconds += time.perf_counter() - start
        return rows

    def _newest(self, before_us: int) -> Snapshot | None:
        """Loads the newest readable snapshot whose watermark lies at or before a time; None before there is one.

        Raises:
            RunError: there are such snapshots, and none can be read.
        """
        failure: RunError | None = None
        for snapshot in same_on_all(self.process_group, self.store.snapshots.published(self.name, before_us)):
            if snapshot == self._loaded:
                return snapshot
            self._loaded = None  # the snapshot is read into the memory that holds the previous one
            error = self._load(snapshot)
            if error is None:
                self._loaded = snapshot
                return snapshot
            logger.warning("%s; labelling with the snapshot before it", error)
            failure = failure or error
        if failure is not None:
            raise failure
        return None

    def _load(self, snapshot: Snapshot) -> RunError | None:
        """Loads a snapshot's weights, or says why not: on all processes where one of them cannot read it."""
        weights: dict[str, torch.Tensor] = {}
        error: RunError | None = None
        try:
            weights = self.store.snapshots.load(snapshot.weights, self.trainer.memory())
        except RunError as unreadable:
            error = unreadable
        if self.process_group.all_agree(error is None):
            check_snapshot(snapshot, weights, self.trainer.constants, self.store.workspace.url)
            self.trainer.load_weights(weights)
            return None
        return error or RunError(f"snapshot {snapshot.version} of {self.name!r}: another process cannot read it")

    def commit(self, rows: int) -> None:
        """Makes the window's supervision visible; of a window without rows only the manifest is kept."""
        if not self.process_group.is_rank_zero:
            return
        counters = {"examples": self._examples, "seconds": self._seconds}
        files = self._rows.close() if rows else {}
        self.store.log.add("supervise", self.name, Commit(self._window, counters, files, self._previous, self._read))
        remove_orphans(self.store.workspace, files.values())

    def close(self) -> None:
        """Discards what was written of the window and not committed."""
        self._rows.discard()

    def _union(self, chunk: SpreadChunk) -> torch.Tensor:
        wanted = torch.zeros(chunk.batch.size, dtype=torch.bool)
        for student in self.students:
            picked = chunk.rows[student]
            wanted[slice(None) if picked is None else picked] = True
        return wanted.nonzero().squeeze(1)
