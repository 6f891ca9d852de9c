"""Combines the workspace with its commit log, snapshots, supervision and predictions.

Teachers may be at home in another run: their supervision, snapshots and predictions are read there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.config.loading import Experiment
from exfm.config.run_files import HOMES_FILE, JOBS_FOLDER, SIBLING, home_url
from exfm.config.training_sections import InitFrom
from exfm.interfaces.data_source import Window
from exfm.storage.backfills import Backfills
from exfm.storage.commits import NONE, STAGES, CommitLog
from exfm.storage.hashing import FileRecord
from exfm.storage.marks import ROWS, first_kept_rows
from exfm.storage.orphans import remove_orphans
from exfm.storage.row_shards import row_records
from exfm.storage.snapshots import SnapshotRegistry
from exfm.storage.workspace import Workspace
from exfm.supervision.frozen_teachers import FrozenTeacher, kept_frozen, resolve_frozen
from exfm.supervision.late_labels import LateLabels, PredictedLabels
from exfm.supervision.stored_rows import read_rows, read_window

if TYPE_CHECKING:
    from exfm.supervision.streaming import OpenSupervision


@dataclass(frozen=True)
class Home:
    """The run that trains a model, and the model's name there."""

    store: Store
    model: str


class Store:
    """Opens a run's folder for the stages: the workspace, the commit log and the snapshots.

    Args:
        url: the run's folder, any fsspec URL.
        homes: for each model that another run trains, the folder of that run and the model's name there; by default as
            the folder says.
        frozen: the teachers of other runs that are frozen at a snapshot, and whose supervision is this run's own; by
            default as the folder says.
    """

    def __init__(
        self,
        url: str,
        homes: Mapping[str, tuple[str, str]] | None = None,
        frozen: Collection[FrozenTeacher] | None = None,
    ) -> None:
        self.workspace = Workspace(
            url, f"; `exfm repair {url}` goes back to the newest window before it that is whole, and says so"
        )
        self.log = CommitLog(self.workspace)
        self.snapshots = SnapshotRegistry(self.workspace, self.log)
        self.backfills = Backfills(self.workspace)
        self.readers = self.snapshots.readers
        self.late_labels = LateLabels(self.workspace)
        if homes is None:
            homes = self.kept_homes()
        if frozen is None:
            frozen = kept_frozen(self.workspace)
        self.frozen = {teacher.teacher: teacher for teacher in frozen}
        self._homes: dict[str, Home] = {}
        for name, (run, model) in homes.items():
            # Without the homes of that run, because only models that it trains itself are read there.
            self._homes[name] = Home(Store(home_url(url, run), {}, ()), model)

    def kept_homes(self) -> dict[str, tuple[str, str]]:
        """Reads the folders and names of the models that other runs train, as the folder says."""
        if not self.workspace.exists(HOMES_FILE):
            return {}
        return {name: (home["run"], home["model"]) for name, home in self.workspace.read_json(HOMES_FILE).items()}

    def write_homes(self, homes: Mapping[str, tuple[str, str]]) -> None:
        """Writes the folders and names of the models that other runs train."""
        entries = {name: {"run": run, "model": model} for name, (run, model) in homes.items()}
        self.workspace.write_json(HOMES_FILE, entries)

    def home(self, model: str) -> Home:
        """Returns the run with a model's files: this run, or another; and the model's name there."""
        if model in self.frozen:
            return Home(self, self.frozen[model].stored_as)
        return self._homes.get(model) or Home(self, model)

    def lent(self, teacher: str) -> Home:
        """Returns the run that trains a teacher elsewhere, also of a teacher that is frozen here."""
        return self._homes[teacher]

    @property
    def frozen_versions(self) -> dict[str, int]:
        """Returns the versions of the frozen teachers, by name."""
        return {name: teacher.version for name, teacher in self.frozen.items()}

    @property
    def borrowed(self) -> frozenset[str]:
        """Returns the names of the models that other runs train."""
        return frozenset(self._homes)

    def prepare(self, models: Collection[str]) -> None:
        """Prepares the folder for writing: checks exclusive creation, and removes unfinished files of dead writers.

        Raises:
            RunError: the store cannot create a file exclusively, or the newest manifest of a model is damaged.
        """
        self.workspace.check_create()
        self.sweep(models)
        for model in models:
            for stage in STAGES:
                head = self.log.head(stage, model)
                # Only the newest window can have orphans: each window is cleaned before the next begins.
                if head != NONE:
                    remove_orphans(self.workspace, self.log.load(stage, model, head).files.values())

    def sweep(self, models: Collection[str]) -> None:
        """Removes unfinished files of writers that have died, in the run's folder and the folders of some models."""
        kinds = ["predictions", "supervision", "late", "aliases", *(f"commits/{stage}" for stage in STAGES)]
        kinds += [f"vacuum/{folder}" for folder in ROWS]
        folders = [f"{kind}/{model}" for kind in kinds for model in models]
        for model in models:
            folders += [f"snapshots/{model}/{name}" for name in self.workspace.names(f"snapshots/{model}")]
        self.workspace.sweep(["", JOBS_FOLDER, *folders])

    def supervision(self, teacher: str, window: Window) -> OpenSupervision | None:
        """Opens a teacher's committed supervision of a window; returns None if there is none, or no row."""
        home = self.home(teacher)
        records = home.store.supervision_files(home.model, window)
        from exfm.supervision.streaming import open_files  # here, as it needs torch

        return open_files(home.store.workspace, records) if records else None

    def is_supervised(self, teacher: str, window: Window) -> bool:
        """Tells whether a window has a teacher's supervision, or is known to have none."""
        home = self.home(teacher)
        has_rows = home.store.log.has("supervise", home.model, window.index)
        return has_rows or home.store.backfills.has(home.model, window.index)

    def supervised_ids(self, model: str, window: Window) -> Iterator[npt.NDArray[np.int64]]:
        """Reads the ids of the examples of a window that a model of this run has supervised, file by file."""
        for record in self.supervision_files(model, window):
            yield read_rows(self.workspace, record, ["example_id"]).column("example_id").to_numpy()

    def supervision_files(self, model: str, window: Window) -> list[FileRecord]:
        """Lists the files of a window's supervision by a model of this run, those of back-fills last."""
        records: list[FileRecord] = []
        if self.log.has("supervise", model, window.index):
            records += row_records(self.log.load("supervise", model, window.index).files)
        for labelling in self.backfills.labellings(model, window.index):
            records.append(labelling.rows)
        return records

    def windows(self, model: str) -> Sequence[Window]:
        """Lists the windows with rows that a model has committed, in order, without those that were let go."""
        first = self._first_kept(model)
        return [window for window in self._windows(model) if window.index >= first]

    def let_go(self, model: str) -> Sequence[Window]:
        """Lists the windows whose predictions a vacuum has removed, in order."""
        first = self._first_kept(model)
        return [window for window in self._windows(model) if window.index < first]

    def _first_kept(self, model: str) -> int:
        home = self.home(model)
        return first_kept_rows(home.store.workspace, "predictions", home.model)

    def _windows(self, model: str) -> list[Window]:
        home = self.home(model)
        return home.store.log.windows_with_files("train", home.model)

    def examples(self, model: str, window: Window) -> int:
        """Returns the number of examples that a model has predicted in a committed window."""
        home = self.home(model)
        return int(home.store.log.load("train", home.model, window.index).counters["examples"])

    def predictions(self, model: str, window: Window) -> pa.Table:
        """Reads a model's committed predictions of a window, in stream order, with the labels that are known by now."""
        home = self.home(model)
        committed = home.store.committed_predictions(home.model, window)
        return home.store.late_labels.apply(home.model, window.index, committed)

    def committed_predictions(self, model: str, window: Window) -> pa.Table:
        """Reads predictions of a model of this run, with the labels that were known then."""
        return read_window(self.workspace, row_records(self.log.load("train", model, window.index).files))

    def predicted_labels(self, model: str, window: Window) -> PredictedLabels:
        """Reads the labels of a window of a model of this run, to compare them with those that are read again."""
        committed = self.committed_predictions(model, window)
        return PredictedLabels(committed, self.late_labels.apply(model, window.index, committed))

    def predicted_ids(self, model: str, window: Window) -> npt.NDArray[np.int64]:
        """Reads the ids of the examples of a window that a model of this run has predicted, in stream order."""
        records = row_records(self.log.load("train", model, window.index).files)
        rows = read_window(self.workspace, records, ["example_id"])
        ids: npt.NDArray[np.int64] = rows.column("example_id").to_numpy()
        return ids


def initial_home(store: Store, config: InitFrom) -> Home:
    """Returns the run and the name of the model that another model starts from."""
    if not config.run:
        return store.home(config.model)
    return Home(Store(config.run, {}, ()), config.model)


def kept_siblings(url: str) -> dict[str, str]:
    """Reads which runs beside a run train models of its experiment: their folders, by the model's name."""
    homes = Store(url, {}, ()).kept_homes()
    return {name: run.removeprefix(SIBLING) for name, (run, _) in homes.items() if run.startswith(SIBLING)}


def keep_homes(url: str, siblings: Mapping[str, str]) -> None:
    """Writes into a run's folder which runs beside it train models of its experiment, by the model's name."""
    if siblings != kept_siblings(url):
        Store(url, {}, ()).write_homes({name: (f"{SIBLING}{folder}", name) for name, folder in siblings.items()})


def open_store(experiment: Experiment) -> Store:
    """Opens the folder of an experiment's run, and those of the runs that train its other teachers.

    Raises:
        ConfigError: the snapshot at which a teacher is frozen is not stored.
    """
    store = Store(experiment.run_dir, {}, ())
    # The file's own URLs win, because the folder keeps them without credentials.
    homes = store.kept_homes()
    frozen: list[FrozenTeacher] = []
    for name, lender in experiment.lenders.items():
        homes[name] = (lender.run, lender.model)
        if lender.at:
            frozen.append(resolve_frozen(store.workspace, store.log, lender))
    return Store(experiment.run_dir, homes, frozen)
