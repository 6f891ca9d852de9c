"""Finds and removes what nobody can ask for any more in a run's folder, and merges small files, beside running jobs.

Rows go in this order: a mark says that they may be gone; readers that have just chosen them get time to open them; the
readers' progress is read again; the files are removed. Manifests stay, so that chains and counters stay whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from exfm.config.retention import RetentionRecord
from exfm.config.run_files import MODELS_FOLDER, recorded_names
from exfm.storage.commits import NONE, Stage
from exfm.storage.hashing import FileRecord
from exfm.storage.marks import ROWS, Rows, mark
from exfm.storage.orphans import find_orphans
from exfm.storage.progress import first_kept_window, needed_from_us
from exfm.storage.readers import Progress, read_retention_of
from exfm.storage.row_shards import row_records
from exfm.supervision.frozen_teachers import kept_frozen
from exfm.supervision.row_merging import CommittedRows, Merge, MergeState, apply_merge, find_merges
from exfm.supervision.store import Store

_STAGE: Mapping[Rows, Stage] = {"supervision": "supervise", "predictions": "train"}


@dataclass(frozen=True)
class RemovableRows:
    """Lists the stored row files of a model that are let go.

    Attributes:
        first_kept: index of the first window whose rows stay.
        held_by: the student that has passed the fewest windows, where it alone keeps rows; empty elsewhere.
    """

    folder: Rows
    model: str
    first_kept: int
    files: tuple[FileRecord, ...]
    held_by: str = ""


@dataclass
class Vacuum:
    """Lists all that can be removed from a run's folder.

    Attributes:
        rows: row files by model and folder.
        snapshots: unneeded versions by model.
        merging: small files of rows to merge, and files that merged files have replaced, by folder and model.
        orphans: files of committed windows that no manifest names.
        ignored: readers for which nothing is kept, with the reason.
        merged: merges that were applied.
    """

    rows: list[RemovableRows] = field(default_factory=list)
    snapshots: dict[str, list[int]] = field(default_factory=dict)
    merging: dict[tuple[Rows, str], MergeState] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    merged: list[Merge] = field(default_factory=list)

    @property
    def merges(self) -> list[Merge]:
        """Returns the merges that are worth it."""
        return [merge for state in self.merging.values() for merge in state.merges]

    @property
    def is_empty(self) -> bool:
        """Tells whether nothing can be removed or merged."""
        has_rows = any(rows.files for rows in self.rows) or not all(state.is_empty for state in self.merging.values())
        return not self.orphans and not any(self.snapshots.values()) and not has_rows


def find_vacuum(store: Store) -> Vacuum:
    """Lists what can be removed from a run's folder or merged in it, and changes nothing."""
    vacuum = Vacuum()
    models = _models(store)
    for name, retention in models.items():
        students = _local_students(store, name, models)
        for reader in store.readers.progress(name):
            if reader.ignored:
                vacuum.ignored.append(f"{reader.name}, a reader of {name}: {reader.ignored}")
            else:
                students.append(reader)
        vacuum.snapshots[name] = _unneeded_snapshots(store, name, retention, students)
        for folder in ROWS:
            rows = _removable_rows(store, folder, name, retention, students)
            vacuum.rows.append(rows)
            vacuum.merging[folder, name] = _find_merges(store, folder, name, rows.first_kept)
        vacuum.orphans += _orphans(store, name)
    for frozen in kept_frozen(store.workspace):
        vacuum.merging["supervision", frozen.stored_as] = _find_merges(store, "supervision", frozen.stored_as, 0)
    return vacuum


def apply_vacuum(store: Store, vacuum: Vacuum, grace_s: float) -> Vacuum:
    """Merges and removes what a vacuum lists, unless somebody needs it by now; returns what was merged and removed.

    Args:
        grace_s: seconds between marking and removing.

    Raises:
        RunError: rows that are to be merged are missing or corrupt.
    """
    store.sweep(list(_models(store)))
    merges = vacuum.merges
    for merge in merges:
        apply_merge(store.workspace, merge)
    if merges:
        vacuum = replace(vacuum, merging=find_vacuum(Store(store.workspace.url)).merging)
    for rows in vacuum.rows:
        if rows.files:
            mark(store.workspace, rows.folder, rows.model, rows.first_kept)
    for (folder, model), state in vacuum.merging.items():
        if state.replaced and state.first:
            mark(store.workspace, folder, model, state.first)
    if vacuum.is_empty:
        return vacuum
    time.sleep(grace_s)
    # In a store opened anew, because a log remembers commits that a job may have taken back meanwhile. A file must be
    # removable both times: between reading a manifest and listing its folder, a window may have begun again.
    removed = _common(vacuum, find_vacuum(Store(store.workspace.url)))
    for path in removed.orphans:
        store.workspace.remove_file(path)
    for rows in removed.rows:
        for record in rows.files:
            store.workspace.remove_file(record.path)
    for state in removed.merging.values():
        state.remove(store.workspace)
    for model, versions in removed.snapshots.items():
        for version in versions:
            store.snapshots.remove(model, version)
    return replace(removed, merged=merges)


def _common(before: Vacuum, now: Vacuum) -> Vacuum:
    """Selects what two vacuums both list."""
    common = Vacuum(orphans=sorted({*before.orphans} & {*now.orphans}), ignored=now.ignored)
    files = {record for rows in before.rows for record in rows.files}
    for rows in now.rows:
        common.rows.append(replace(rows, files=tuple(record for record in rows.files if record in files)))
    for model, versions in now.snapshots.items():
        common.snapshots[model] = [version for version in versions if version in before.snapshots.get(model, ())]
    for key, state in now.merging.items():
        common.merging[key] = state.common(before.merging.get(key, MergeState(0)))
    return common


def _models(store: Store) -> dict[str, RetentionRecord]:
    """Reads the records of a run's models, also of those without commits yet."""
    models: dict[str, RetentionRecord] = {}
    for name in sorted(recorded_names(store.workspace.names(MODELS_FOLDER))):
        retention = read_retention_of(store.workspace, name)
        if retention is not None:
            models[name] = retention
    return models


def _local_students(store: Store, teacher: str, models: Mapping[str, RetentionRecord]) -> list[Progress]:
    """Reads the progress of the students of a model in its own run."""
    students: list[Progress] = []
    for name, retention in models.items():
        if teacher in retention.teachers:
            from_us = needed_from_us(store.log, name, retention)
            students.append(Progress("", name, from_us, retention.teachers[teacher]))
    return students


def _unneeded_snapshots(store: Store, model: str, retention: RetentionRecord, students: list[Progress]) -> list[int]:
    head = store.log.head("train", model)
    if head == NONE:
        return []
    needed_us = store.log.load("train", model, head).window.end_us
    delay_us = retention.delay_us
    for student in students:
        if student.reads_snapshots:
            needed_us = min(needed_us, student.from_us - delay_us)
    if retention.is_labelled:  # labelled windows are not labelled again
        labelled = store.log.head("supervise", model)
        behind_us = 0
        if labelled != NONE:
            behind_us = store.log.load("supervise", model, labelled).window.end_us
        needed_us = min(needed_us, behind_us - delay_us)
    return store.snapshots.unneeded(model, needed_us, retention.keep.snapshots)


def _removable_rows(
    store: Store, folder: Rows, model: str, retention: RetentionRecord, students: list[Progress]
) -> RemovableRows:
    """Lists the row files of a model that its section ``keep`` lets go, and that all students have passed."""
    stage = _STAGE[folder]
    keep = retention.keep.supervision if folder == "supervision" else retention.keep.predictions
    first = first_kept_window(store.log, stage, model, keep)
    held_by = ""
    if folder == "supervision" and first:
        head = store.log.head(stage, model)
        window = store.log.load(stage, model, head).window
        for student in students:
            # Windows have one length, so the index of the window at a time follows from any window.
            needed = head + (student.from_us - window.start_us) // (window.end_us - window.start_us)
            if needed < first:
                first, held_by = max(needed, 0), student.name
    # A mark is never taken back here: rows that it names and that are stored go too, as after a kill.
    stored = set(store.workspace.names(f"{folder}/{model}")) if first else set()
    files: list[FileRecord] = []
    for record in _rows_before(store, folder, model, first) if stored else ():
        if record.path.rpartition("/")[2] in stored:
            files.append(record)
    return RemovableRows(folder, model, first, tuple(files), held_by)


def _find_merges(store: Store, folder: Rows, model: str, first: int) -> MergeState:
    """Finds the small row files of a model that are worth a merge."""
    committed = sorted(_committed_rows(store, folder, model), key=lambda rows: rows.window)
    head = store.log.head(_STAGE[folder], model)
    return find_merges(store.workspace, folder, model, committed, first, head)


def _committed_rows(store: Store, folder: Rows, model: str) -> Iterator[CommittedRows]:
    """Yields the row files of a model's windows, those of back-fills too, whether stored or not."""
    stage = _STAGE[folder]
    for index in store.log.windows(stage, model):
        for record in row_records(store.log.load(stage, model, index).files):
            yield CommittedRows(index, record)
    if folder == "supervision":
        for index in store.backfills.windows(model):
            for labelling in store.backfills.labellings(model, index):
                yield CommittedRows(index, labelling.rows)


def _rows_before(store: Store, folder: Rows, model: str, first: int) -> Iterator[FileRecord]:
    """Yields the row files of the windows before an index, and the labels that became known later, stored or not."""
    windows: dict[int, None] = {}
    for rows in _committed_rows(store, folder, model):
        if rows.window < first:
            windows[rows.window] = None
            yield rows.record
    for window in windows if folder == "predictions" else ():
        late = store.late_labels.record(model, window)
        if late is not None:
            yield late


def _orphans(store: Store, model: str) -> list[str]:
    """Lists the files of a model's committed windows that no manifest names."""
    orphans: list[str] = []
    for stage in _STAGE.values():
        rows: list[FileRecord] = []
        for index in store.log.windows(stage, model):
            rows += row_records(store.log.load(stage, model, index).files)
            late = store.late_labels.record(model, index) if stage == "train" else None
            if late is not None:
                rows.append(late)
        orphans += find_orphans(store.workspace, rows)
    for version in store.snapshots.versions(model):
        orphans += find_orphans(store.workspace, store.snapshots.files(model, version))
    return orphans
