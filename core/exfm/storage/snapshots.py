"""Publishes and finds snapshots: immutable versions of a model, each with the time up to which it has trained.

A snapshot belongs to the commit of its window, so a reader never sees a part of a snapshot. The commit also says
whether the snapshot is published or held: training goes on from a held snapshot, and nobody else reads it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

from torch import Tensor

from exfm.config.keep_section import NEWEST, Kept
from exfm.interfaces.data_source import Window
from exfm.interfaces.process_group import ProcessGroup
from exfm.storage.aliases import Aliases
from exfm.storage.commits import NONE, Commit, CommitLog
from exfm.storage.hashing import FileRecord
from exfm.storage.progress import first_kept_window
from exfm.storage.readers import Readers
from exfm.storage.row_shards import is_rows
from exfm.storage.tensor_files import read_tensors, write_tensors
from exfm.storage.workspace import Workspace, numbered

MODEL_FILE = "model"
TRAINING_FILE = "training"

READING_S = 60.0
"""Seconds for which an unneeded snapshot is kept: a reader may have chosen it as the newest, and not opened it yet."""

LEAVING = 6
"""Limit of unneeded snapshots kept: where a window takes a second, the snapshots of a minute could fill the disk."""


@dataclass(frozen=True)
class Snapshot:
    """Describes a committed version of a model, which has trained only on examples before ``watermark_us``.

    Attributes:
        model: name of the model.
        version: index of the window after which it was committed.
        watermark_us: end of that window.
        learned: tasks whose labels the model has seen.
        weights: file with the model's weights.
        training: file with the state that continued training needs besides.
        held: by task, why the snapshot is held; empty if it is published.
    """

    model: str
    version: int
    watermark_us: int
    learned: tuple[str, ...]
    weights: FileRecord
    training: FileRecord
    held: Mapping[str, str] = field(default_factory=dict)


class SnapshotRegistry:
    """Publishes, finds and retires snapshots; version N is the model after window N."""

    def __init__(self, workspace: Workspace, log: CommitLog) -> None:
        self.workspace = workspace
        self.log = log
        self.aliases = Aliases(workspace)
        self.readers = Readers(workspace)
        # Monotonic time at which a snapshot was first seen to be unneeded, by model and version.
        self._unneeded_since: dict[str, dict[int, float]] = {}

    def write(
        self, model: str, window: Window, weights: dict[str, Tensor], training: dict[str, Tensor]
    ) -> dict[str, FileRecord]:
        """Writes a snapshot's files; the window's commit waits until they are on disk, and publishes or holds them.

        Args:
            model: name of the model.
            window: the window after which the snapshot is taken.
            weights: tensors for serving and labelling.
            training: tensors that continued training needs besides.

        Returns:
            The files by role, for the window's commit.
        """
        folder = _folder(model, window.index)
        watermark = {"watermark_us": str(window.end_us)}
        return {
            MODEL_FILE: self._write(f"{folder}/model-{{digest}}.safetensors", weights, watermark),
            TRAINING_FILE: self._write(f"{folder}/training-{{digest}}.safetensors", training, {}),
            "snapshot": self.workspace.write_json(
                f"{folder}/snapshot-{{digest}}.json",
                {"model": model, "version": window.index, "watermark_us": window.end_us},
                sync=False,
            ),
        }

    def _write(self, path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FileRecord:
        with self.workspace.writing(path, sync=False) as file:
            write_tensors(file, tensors, metadata)
        return file.record()

    def get(self, model: str, version: int) -> Snapshot:
        """Returns a committed version."""
        return _snapshot(model, self.log.load("train", model, version))

    def newest_first(self, model: str, before_us: int) -> Iterator[Snapshot]:
        """Yields the stored snapshots, held or published, whose watermark is at or before a time, newest first."""
        for snapshot in self.committed(model, before_us):
            if self.is_stored(snapshot):
                yield snapshot

    def published(self, model: str, before_us: int) -> Iterator[Snapshot]:
        """Yields the snapshots that readers may use, newest first, including retired snapshots.

        Args:
            before_us: the latest watermark.
        """
        for snapshot in self.committed(model, before_us):
            if not snapshot.held:
                yield snapshot

    def committed(self, model: str, before_us: int = sys.maxsize) -> Iterator[Snapshot]:
        """Yields the snapshots whose watermark is at or before a time, newest first, also held and retired snapshots.

        Their names come from the manifests, because a listing of the folder may lack the newest.
        """
        for version in self.log.newest_first("train", model):
            commit = self.log.load("train", model, version)
            if commit.window.end_us <= before_us and commit.files:
                yield _snapshot(model, commit)

    def is_stored(self, snapshot: Snapshot) -> bool:
        """Tells whether a snapshot is not retired."""
        # A retired snapshot has lost both files. If a single file is missing, opening it must fail with an error.
        return any(self.workspace.exists(file.path) for file in (snapshot.weights, snapshot.training))

    def rollback(self, model: str, alias: str) -> tuple[int, int]:
        """Moves an alias back to the newest stored and published version that it was promoted to before.

        Returns:
            The versions that it pointed at, and points at now.

        Raises:
            ConfigError: there is no such alias, or no such version.
        """
        return self.aliases.rollback(model, alias, self._is_good)

    def _is_good(self, model: str, version: int) -> bool:
        # A repair may have removed the window.
        if not self.log.has("train", model, version):
            return False
        snapshot = self.get(model, version)
        return not snapshot.held and self.is_stored(snapshot)

    def load(self, record: FileRecord, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Reads the tensors of a snapshot's file. Large tensors are memory-mapped: the caller copies what it keeps.

        Args:
            record: the committed file.
            into: destinations by name, such as a model's parameters: a tensor of equal dtype and shape is read into
                its destination without an intermediate copy.

        Raises:
            RunError: the file is missing or corrupt, and ``into`` is unchanged; or there is no memory.
        """
        with self.workspace.reading(record) as file:
            return read_tensors(file, self.workspace.name(record.path), into=into)

    def load_some(self, record: FileRecord, select: Callable[[str], bool]) -> dict[str, Tensor]:
        """Reads the tensors of a snapshot's file whose names are selected, after checking the whole file.

        Raises:
            RunError: the file is missing or corrupt.
        """
        with self.workspace.reading(record) as file:
            return read_tensors(file, self.workspace.name(record.path), select)

    def versions(self, model: str) -> list[int]:
        """Lists the versions whose folders exist, in order."""
        return numbered(self.workspace.names(f"snapshots/{model}"))

    def unneeded(self, model: str, needed_us: int, keep: Kept = NEWEST) -> list[int]:
        """Lists the stored versions that no stage can request any more, in order.

        The newest ``NEWEST`` stay, those that the model keeps, those that an alias points at or can be rolled back to,
        and those at which another run has frozen the model as a teacher.

        Args:
            model: name of the model.
            needed_us: earliest time for which a snapshot may still be requested.
            keep: the windows whose snapshots stay in any case.
        """
        head = self.log.head("train", model)
        if keep == "all" or head == NONE:
            return []
        # A folder after the newest commit is of a window that a job is about to commit.
        stored = [version for version in self.versions(model) if version <= head]
        first = first_kept_window(self.log, "train", model, keep)
        needed, held = self._needed(model, needed_us)
        kept = self.aliases.versions(model) | self.readers.frozen_versions(model)
        unneeded: list[int] = []
        for version in stored[:-NEWEST]:
            if version < first and (version < needed or version in held) and version not in kept:
                unneeded.append(version)
        return unneeded

    def retire(self, model: str, needed_us: int, keep: Kept = NEWEST) -> None:
        """Removes the unneeded snapshots.

        Each stays for ``READING_S``, because a reader such as `exfm predict` may be about to open it.

        Args:
            model: name of the model.
            needed_us: earliest time for which a snapshot may still be requested.
            keep: the windows whose snapshots stay in any case.
        """
        unneeded = self.unneeded(model, needed_us, keep)
        since, now = self._unneeded_since.setdefault(model, {}), time.monotonic()
        for version in unneeded:
            since.setdefault(version, now)
        # The oldest come first: those beyond the limit have a negative number.
        for number, version in enumerate(unneeded, start=LEAVING - len(unneeded)):
            if number < 0 or now - since[version] >= READING_S:
                self.remove(model, version)
                del since[version]

    def files(self, model: str, version: int) -> list[FileRecord]:
        """Lists the files of a committed version; none if its window had no rows or was not committed."""
        if not self.log.has("train", model, version):
            return []
        return [file for role, file in self.log.load("train", model, version).files.items() if not is_rows(role)]

    def remove(self, model: str, version: int) -> None:
        """Removes a snapshot's folder."""
        self.workspace.remove(_folder(model, version))

    def _needed(self, model: str, needed_us: int) -> tuple[int, set[int]]:
        """Returns the oldest version that may still be requested, -1 without any, and the held versions after it."""
        held: set[int] = set()
        for snapshot in self.committed(model):
            if snapshot.held:
                # Training alone reads it, and goes on from the newest two: a long failure must not fill the disk.
                held.add(snapshot.version)
            elif snapshot.watermark_us <= needed_us and self.is_stored(snapshot):
                return snapshot.version, held
        return -1, held


def same_on_all(process_group: ProcessGroup, candidates: Iterator[Snapshot]) -> Iterator[Snapshot]:
    """Broadcasts the snapshots of rank 0 to all ranks, because listings of a store may differ between machines."""
    while True:
        data = b""
        if process_group.is_rank_zero and (snapshot := next(candidates, None)) is not None:
            data = json.dumps(asdict(snapshot)).encode()
        # Every rank takes part in each broadcast; empty data ends the loop on all of them.
        data = process_group.broadcast_bytes(data)
        if not data:
            return
        raw = json.loads(data)
        weights, training = FileRecord(**raw.pop("weights")), FileRecord(**raw.pop("training"))
        yield Snapshot(**raw | {"learned": tuple(raw["learned"])}, weights=weights, training=training)


def _snapshot(model: str, commit: Commit) -> Snapshot:
    learned = tuple(commit.counters["learned"])
    weights, training = commit.files[MODEL_FILE], commit.files[TRAINING_FILE]
    # A manifest of a version without gates has no such counter: all of its snapshots were published.
    held = commit.counters.get("held", {})
    return Snapshot(model, commit.window.index, commit.window.end_us, learned, weights, training, held)


def _folder(model: str, version: int) -> str:
    return f"snapshots/{model}/{version:06d}"
