"""Labels windows that a teacher has passed with snapshots of their time, for students whose rows are not labelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from exfm.config.checks import Arm, row_conditions
from exfm.config.loading import Experiment
from exfm.data.source_errors import source_errors
from exfm.data.stream import ChunkReader
from exfm.data.windows import windows_with_events
from exfm.distributed.chunk_exchange import ShardedChunk, read_sharded
from exfm.errors import ConfigError
from exfm.interfaces.data_source import TimeRange, Window
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.learning.trainer import Trainer
from exfm.scheduling.identity import read_grid
from exfm.storage.backfills import CLAIM_S, Backfill
from exfm.storage.hashing import FileRecord
from exfm.storage.snapshots import Snapshot
from exfm.supervision.row_files import RowWriter, backfill_file, supervision_columns, supervision_schema
from exfm.supervision.store import Store
from exfm.training.labeller import Labeller, labelled_for
from exfm.transfer.build import teacher_specs

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BackfilledWindow:
    """Reports on a window.

    Attributes:
        rows: number of rows that were labelled now.
        version: the snapshot that labelled them; None if there was none.
        left: why nothing was labelled, if so; the students of a masked window learn from no supervision in it.
        masked: whether students will pass the window without supervision.
    """

    window: Window
    rows: int = 0
    version: int | None = None
    left: str = ""
    masked: bool = False


class Backfiller:
    """Labels a teacher's past windows, in a single process; several such jobs share the windows.

    Args:
        model: the teacher's name.

    Raises:
        ConfigError: the plan has several processes, or the run has no windows yet.
    """

    def __init__(self, experiment: Experiment, store: Store, plan: ParallelPlan, model: str) -> None:
        if plan.process_group.world_size > 1:
            raise ConfigError(
                "--backfill: a back-fill runs in a single process; start several such jobs, which share its windows"
            )
        grid = read_grid(store)
        if grid is None:
            raise ConfigError(f"--backfill: {store.workspace.url} has no windows yet; train {model!r} first")
        self._grid, self._store, self._source = grid, store, experiment.source
        self._group = plan.process_group
        arm = next(arm for arm in experiment.arms if arm.name == model)
        self._teacher: Arm = arm
        trainer = Trainer(arm, experiment.schema, teacher_specs(experiment), plan, experiment.config.seed)
        self._labeller = Labeller(trainer, store, labelled_for(experiment, arm))
        where = row_conditions(experiment.arms)
        self._reader = ChunkReader(experiment.source, experiment.schema, experiment.config.stream, where, plan.shard)
        self._schema = supervision_schema(arm.tasks, arm.name, trainer.embedding, trainer.vectors, trainer.model.labels)

    def run(self, between: TimeRange, on_window: Callable[[BackfilledWindow], None]) -> None:
        """Labels the windows that begin in a time range, and reports on each.

        Raises:
            RunError: a committed file is missing or corrupt.
        """
        with source_errors():
            span = self._source.time_range()
        common = TimeRange(max(between.start_us, self._grid.origin_us), min(between.end_us, span.end_us))
        for window in windows_with_events(self._source, self._grid, common):
            if window.start_us >= between.start_us:
                on_window(self._window(window))

    def _window(self, window: Window) -> BackfilledWindow:
        """Labels a window, unless another job does or the teacher will."""
        name, backfills = self._teacher.name, self._store.backfills
        if not self._is_past(window):
            return BackfilledWindow(window, left="the teacher has not passed it yet, and labels it then")
        if not backfills.claim(name, window.index):
            return BackfilledWindow(window, left="another job is labelling it")
        try:
            return self._label(window)
        finally:
            backfills.release(name, window.index)

    def _is_past(self, window: Window) -> bool:
        """Tells whether the teacher has passed a window, so that it will not label it by itself."""
        if self._teacher.config.supervision.delay:
            return self._store.log.head("supervise", self._teacher.name) >= window.index
        return self._store.log.head("train", self._teacher.name) >= window.index

    def _label(self, window: Window) -> BackfilledWindow:
        """Labels the rows of a window that are not labelled yet."""
        name, store = self._teacher.name, self._store
        labellings = store.backfills.labellings(name, window.index)
        supervised = store.log.has("supervise", name, window.index)
        # The snapshot that the teacher would have used then: a newer snapshot has learned from the window's own labels.
        before_us = window.start_us - self._labeller.delay_us
        snapshot = next(store.snapshots.published(name, before_us), None)
        if snapshot is None or not store.snapshots.is_stored(snapshot):
            reason = "there was no snapshot yet that may label it"
            if snapshot is not None:
                reason = f"snapshot {snapshot.version}, which may label it, is no longer stored (keep.snapshots)"
            # Recorded too, because a student waits for a window until it is labelled or masked.
            if not supervised and not labellings:
                store.backfills.add(name, Backfill(window.index, self._no_rows(window), reason=reason), 0)
            return BackfilledWindow(window, left=reason, masked=not supervised)
        record, rows = self._write(window, snapshot, self._labelled(window, supervised, labellings))
        if rows or not (supervised or labellings):
            labelling = Backfill(window.index, record, snapshot.version)
            if not store.backfills.add(name, labelling, len(labellings)):
                return BackfilledWindow(window, left="another job has labelled it")
        else:
            # A file without rows next to a labelling says nothing, and no manifest names it.
            store.workspace.remove_file(record.path)
        left = "" if rows else "all of its rows are labelled"
        return BackfilledWindow(window, rows, snapshot.version, left)

    def _no_rows(self, window: Window) -> FileRecord:
        """Writes the file of a masked window, from which students read that there is no supervision."""
        return RowWriter(self._store.workspace, backfill_file(self._teacher.name, window.index), self._schema).close()

    def _labelled(self, window: Window, supervised: bool, labellings: object) -> Ids:
        """Reads the ids of the examples of a window that are labelled."""
        stored = [*self._store.supervised_ids(self._teacher.name, window)] if supervised or labellings else []
        return np.sort(np.concatenate(stored)) if stored else np.zeros(0, np.int64)

    def _write(self, window: Window, snapshot: Snapshot, labelled: Ids) -> tuple[FileRecord, int]:
        """Labels the rows of a window whose ids are new; returns their file and their number."""
        self._labeller.use(snapshot)
        name = self._teacher.name
        writer = RowWriter(self._store.workspace, backfill_file(name, window.index), self._schema)
        count, renewed = 0, time.monotonic()
        try:
            for chunk, picked in self._new_rows(window, labelled):
                supervision, rows = self._labeller.label_rows(chunk, picked)
                if picked.numel():
                    writer.append(supervision_columns(supervision, window.index, snapshot.version))
                count += rows.examples
                # Often enough that a few slow chunks do not let the claim expire, and seldom, because each renewal is a
                # write.
                if time.monotonic() - renewed > CLAIM_S / 10:
                    self._store.backfills.renew(name, window.index)
                    renewed = time.monotonic()
        except BaseException:
            writer.discard()
            raise
        return writer.close(), count

    def _new_rows(self, window: Window, labelled: Ids) -> Iterator[tuple[ShardedChunk, torch.Tensor]]:
        """Yields the chunks of a window, each with the positions of the students' rows that are not labelled yet."""
        for chunk in read_sharded(self._reader, window, self._group):
            picked = self._labeller.union(chunk)
            ids = chunk.batch.example_id[picked].numpy()
            yield chunk, picked[torch.from_numpy(~np.isin(ids, labelled))]
