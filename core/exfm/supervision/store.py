"""Combines the workspace with its commit log, snapshots, supervision and predictions."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pyarrow as pa

from exfm.interfaces.data_source import Window
from exfm.storage.commits import NONE, STAGES, CommitLog
from exfm.storage.orphans import remove_orphans
from exfm.storage.snapshots import SnapshotRegistry
from exfm.storage.workspace import Workspace
from exfm.supervision.row_files import read_rows
from exfm.supervision.streaming import SupervisionStream


class Store:
    """Opens a run's folder for the stages: the workspace, the commit log and the snapshots.

    Args:
        url: the run's folder, any fsspec URL.
    """

    def __init__(self, url: str) -> None:
        self.workspace = Workspace(
            url, f"; `exfm repair {url}` goes back to the newest window before it that is whole, and says so"
        )
        self.log = CommitLog(self.workspace)
        self.snapshots = SnapshotRegistry(self.workspace, self.log)

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
        kinds = ("predictions", "supervision", "late", "aliases", *(f"commits/{stage}" for stage in STAGES))
        folders = [f"{kind}/{model}" for kind in kinds for model in models]
        for model in models:
            folders += [f"snapshots/{model}/{name}" for name in self.workspace.names(f"snapshots/{model}")]
        self.workspace.sweep(["", *folders])

    def supervision(self, teacher: str, window: Window) -> SupervisionStream | None:
        """Opens a teacher's committed supervision of a window; returns None if the window has no rows."""
        files = self.log.load("supervise", teacher, window.index).files
        return SupervisionStream(self.workspace, files["rows"]) if files else None

    def windows(self, model: str) -> Sequence[Window]:
        """Lists the windows with rows that a model has committed, in order."""
        return [commit.window for commit in self.log.commits("train", model) if commit.files]

    def examples(self, model: str, window: Window) -> int:
        """Returns the number of examples that a model has predicted in a committed window."""
        return int(self.log.load("train", model, window.index).counters["examples"])

    def predictions(self, model: str, window: Window) -> pa.Table:
        """Reads a model's committed predictions of a window, in stream order."""
        return read_rows(self.workspace, self.log.load("train", model, window.index).files["rows"])
