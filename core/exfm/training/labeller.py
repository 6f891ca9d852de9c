"""Labels examples with earlier snapshots: forward passes only, once per example however many students read it."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.distributed.chunk_exchange import ModelChunk, ShardedChunk
from exfm.distributed.sharded_rows import ShardedRowWriter
from exfm.interfaces.data_source import Window
from exfm.interfaces.duration import microseconds
from exfm.learning.frozen_snapshot import FrozenSnapshot
from exfm.learning.model_output import ForwardRows
from exfm.learning.snapshot_loader import SnapshotLoader
from exfm.learning.trainer import Trainer
from exfm.storage.commits import Commit, WindowRead
from exfm.storage.hashing import FileRecord
from exfm.storage.orphans import remove_orphans
from exfm.storage.snapshots import Snapshot
from exfm.supervision.joiner import SupervisionRows
from exfm.supervision.row_files import supervision_columns, supervision_schema
from exfm.supervision.store import Store

logger = logging.getLogger(__name__)


def labelled_for(experiment: Experiment, teacher: Arm) -> tuple[str, ...]:
    """Lists the arms whose rows a teacher with a delay labels: its students', and its own for students elsewhere."""
    students = tuple(arm.name for arm in experiment.arms if teacher.name in arm.teachers)
    if students and not teacher.config.supervision.store:
        return students
    return (*students, teacher.name)


class Labeller:
    """Supervises a teacher's students with the newest snapshot that the teacher's delay allows.

    Args:
        trainer: a model of the teacher's shape, whose weights are overwritten by those of snapshots.
        students: names of the arms that learn from the teacher; the union of their rows is labelled.
        frozen: the snapshots of a teacher that another run trains, and that this run has frozen; None of others.
    """

    def __init__(
        self, trainer: Trainer, store: Store, students: tuple[str, ...], frozen: FrozenSnapshot | None = None
    ) -> None:
        self.trainer = trainer
        self.process_group = trainer.plan.process_group
        self.teacher: Arm = trainer.arm
        self.name = trainer.arm.name
        self.store = store
        self.students = students
        self.delay_us = microseconds(trainer.arm.config.supervision.delay)
        self.frozen = frozen
        # Of a frozen teacher, the name of its supervision in this run.
        self._stored_as = store.home(self.name).model
        self._loader = SnapshotLoader(trainer, store.snapshots if frozen is None else frozen.snapshots)

    def head(self) -> int:
        """Returns the index of the newest labelled window, or ``NONE``."""
        return self.store.log.head("supervise", self._stored_as)

    def begin(self, window: Window, read: WindowRead) -> None:
        """Opens the window's row file and loads the snapshot that labels all examples of the window.

        The snapshot depends on the window's start alone, and not on the chunks into which the window is cut.

        Args:
            read: the state of the stream in which the window is read.

        Raises:
            RunError: there are snapshots that are old enough, and none can be read.
        """
        start = time.perf_counter()
        self._window, self._read = window, read
        self._previous = self.head()
        before_us = window.start_us - self.delay_us
        if self.frozen is None:
            candidates = self.store.snapshots.published(self.name, before_us)
        else:
            candidates = self.frozen.at_or_before(before_us)
        self._snapshot = self._loader.newest(candidates, "labelling with")
        if self._snapshot is None and self.frozen is not None:
            logger.warning("%s: window %s is not labelled: %s", self.name, window, self.frozen.too_late())
        self._examples = 0
        trainer = self.trainer
        self._rows = ShardedRowWriter(
            self.process_group,
            self.store.workspace,
            "supervision",
            self._stored_as,
            window.index,
            supervision_schema(self.teacher.tasks, self.name, trainer.embedding, trainer.vectors, trainer.model.labels),
        )
        self._seconds = time.perf_counter() - start

    def label(self, chunk: ShardedChunk) -> SupervisionRows:
        """Supervises the union of the students' rows of a chunk; returns no rows before there is a snapshot."""
        start = time.perf_counter()
        picked = torch.zeros(0, dtype=torch.int64)
        version = -1  # of files without rows
        if self._snapshot is not None:
            picked, version = self.union(chunk), self._snapshot.version
        supervision, rows = self.label_rows(chunk, picked)
        self._rows.append(supervision_columns(supervision, self._window.index, version), rows.position)
        self._examples += rows.examples
        self._seconds += time.perf_counter() - start
        return supervision

    def use(self, snapshot: Snapshot) -> None:
        """Loads a snapshot, which labels from now on.

        Raises:
            RunError: it cannot be read.
        """
        error = self._loader.load(snapshot)
        if error is not None:
            raise error
        self._snapshot = snapshot

    def label_rows(self, chunk: ShardedChunk, picked: torch.Tensor) -> tuple[SupervisionRows, ModelChunk]:
        """Supervises rows of a chunk with the loaded snapshot.

        Args:
            picked: the positions of the rows, ascending; none without a snapshot.
        """
        rows = chunk.cut(picked, self.teacher.config.batch_size)
        outputs = ForwardRows(self.trainer.model.labels, self.trainer.embedding, self.trainer.vectors)
        if self._snapshot is not None:
            self._predict(chunk, rows, self._snapshot, outputs)
        return outputs.supervision(chunk.select_without_features(rows.index)), rows

    def _predict(self, chunk: ShardedChunk, rows: ModelChunk, snapshot: Snapshot, outputs: ForwardRows) -> None:
        """Adds the forward passes of the loaded snapshot over rows of a chunk."""
        for batch in chunk.batches(rows, self.trainer.model):
            forward = self.trainer.predict(batch.batch)
            # Rows of the snapshot: only a back-fill has any, because a teacher with a delay stores none.
            forward = forward.with_vectors(self.trainer.rows(batch.batch)).first_rows(batch.shard.size)
            outputs.add(forward, snapshot.learned, snapshot.watermark_us)

    def commit(self, rows: int) -> None:
        """Commits the window's supervision; a window without rows has a manifest only."""
        if rows:
            self._rows.gather_files()
        if not self.process_group.is_rank_zero:
            return
        counters: dict[str, Any] = {"examples": self._examples, "seconds": self._seconds}
        if self.frozen is not None:
            counters["masked"] = self._snapshot is None
        files: dict[str, FileRecord] = {}
        if rows:
            files = self._rows.close()
        self.store.log.add(
            "supervise", self._stored_as, Commit(self._window, counters, files, self._previous, self._read)
        )
        # After the manifest, which decides the files that count where several writers have left some.
        remove_orphans(self.store.workspace, files.values())

    def close(self) -> None:
        """Removes the window's file if it was not committed."""
        self._rows.discard()

    def union(self, chunk: ShardedChunk) -> torch.Tensor:
        """Returns the positions, ascending, of the rows that any student reads."""
        mask = torch.zeros(chunk.batch.size, dtype=torch.bool)
        for student in self.students:
            rows = chunk.rows[student]
            if rows is None:  # all rows
                mask[:] = True
            else:
                mask[rows] = True
        return mask.nonzero().squeeze(1)
