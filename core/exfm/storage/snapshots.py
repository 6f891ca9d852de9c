"""The snapshot registry: published, immutable versions of a model, each with the time up to which it has trained.

A snapshot is part of its window's commit, so there is no moment at which a reader could find half of one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from exfm.interfaces.data_source import Window
from exfm.interfaces.process_group import ProcessGroup
from exfm.storage.commits import Commit, CommitLog
from exfm.storage.hashing import FileRecord
from exfm.storage.tensor_files import read_tensors, write_tensors
from exfm.storage.workspace import Workspace, numbered

MODEL_FILE = "model"
TRAINING_FILE = "training"

NEWEST = 2
"""Snapshots that always stay: the last one, and the one before it should the last be damaged."""

READING_S = 60.0
"""How long a snapshot stays that nobody needs: a reader may have found it when it was the newest, and not opened it."""

LEAVING = 6
"""So many of those at most: where windows take a second, a minute's snapshots could fill the disk."""


@dataclass(frozen=True)
class Snapshot:
    """A published version. It has trained on examples before ``watermark_us`` and on no others.

    Attributes:
        learned: the tasks of which it has seen labels.
    """

    model: str
    version: int
    watermark_us: int
    learned: tuple[str, ...]
    weights: FileRecord
    training: FileRecord


class SnapshotRegistry:
    """Publishes and finds snapshots; version N is what a model was after window N."""

    def __init__(self, workspace: Workspace, log: CommitLog) -> None:
        self.workspace = workspace
        self.log = log
        self._unwanted: dict[str, dict[int, float]] = {}  # since when, by model and version

    def write(
        self, model: str, window: Window, weights: dict[str, Tensor], training: dict[str, Tensor]
    ) -> dict[str, FileRecord]:
        """Writes a snapshot's files; committing them publishes it.

        Args:
            weights: what serving and labelling need.
            training: what continuing the training needs besides.
        """
        folder = _folder(model, window.index)
        watermark = {"watermark_us": str(window.end_us)}
        return {
            MODEL_FILE: self._write(f"{folder}/model-{{digest}}.safetensors", weights, watermark),
            TRAINING_FILE: self._write(f"{folder}/training-{{digest}}.safetensors", training, {}),
            "snapshot": self.workspace.write_json(
                f"{folder}/snapshot-{{digest}}.json",
                {"model": model, "version": window.index, "watermark_us": window.end_us},
            ),
        }

    def _write(self, path: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FileRecord:
        with self.workspace.writing(path) as file:
            write_tensors(file, tensors, metadata)
        return file.record()

    def get(self, model: str, version: int) -> Snapshot:
        """A published version."""
        return _snapshot(model, self.log.load("train", model, version))

    def newest_first(self, model: str, before_us: int) -> Iterator[Snapshot]:
        """The snapshots whose watermark lies at or before a time, the newest first; retired ones are left out."""
        for snapshot in self.published(model, before_us):
            # Of one that has lost a file the reader is to hear.
            if any(self.workspace.exists(file.path) for file in (snapshot.weights, snapshot.training)):
                yield snapshot

    def published(self, model: str, before_us: int) -> Iterator[Snapshot]:
        """The same with those that are retired: for readers whose snapshots are kept for them.

        They are asked for by the names in the manifests: a listing may lack the newest.
        """
        for version in self.log.newest_first("train", model):
            commit = self.log.load("train", model, version)
            if commit.window.end_us <= before_us and commit.files:
                yield _snapshot(model, commit)

    def load(self, record: FileRecord, into: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The tensors of one of a snapshot's files. Large ones lie in the file: what is to stay is copied from them.

        Args:
            into: memory by name, such as a model's own: a tensor of its form is read into it, with no copy between.

        Raises:
            RunError: the file is missing or corrupt, and ``into`` is as it was; or there is no memory.
        """
        with self.workspace.reading(record) as file:
            return read_tensors(file, self.workspace.name(record.path), into=into)

    def load_some(self, record: FileRecord, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Those of a file's tensors whose names are wanted; of the others only the checksum is taken.

        Raises:
            RunError: the file is missing or corrupt.
        """
        with self.workspace.reading(record) as file:
            return read_tensors(file, self.workspace.name(record.path), wanted)

    def versions(self, model: str) -> list[int]:
        """Those whose files are there, in order."""
        return numbered(self.workspace.names(f"snapshots/{model}"))

    def retire(self, model: str, needed_us: int) -> None:
        """Removes the snapshots that nobody can ask for any more.

        The newest two always stay. One that has just been found by a reader, as by `exfm predict`, stays for a while:
        see ``READING_S``.

        Args:
            needed_us: the earliest time for which a snapshot may still be wanted.
        """
        needed = next((snapshot.version for snapshot in self.newest_first(model, needed_us)), -1)
        unwanted = [version for version in self.versions(model)[:-NEWEST] if version < needed]
        since, now = self._unwanted.setdefault(model, {}), time.monotonic()
        for version in unwanted:
            since.setdefault(version, now)
        for place, version in enumerate(unwanted, start=LEAVING - len(unwanted)):
            if place < 0 or now - since[version] >= READING_S:
                self.workspace.remove(_folder(model, version))
                del since[version]


def same_on_all(process_group: ProcessGroup, candidates: Iterator[Snapshot]) -> Iterator[Snapshot]:
    """Yields the first process's snapshots on every process, whatever the others can see."""
    while True:
        own = next(candidates, None) if process_group.is_rank_zero else None
        data = process_group.broadcast_bytes(b"" if own is None else json.dumps(asdict(own)).encode())
        if not data:
            return
        raw = json.loads(data)
        weights, training = FileRecord(**raw.pop("weights")), FileRecord(**raw.pop("training"))
        yield Snapshot(**raw | {"learned": tuple(raw["learned"])}, weights=weights, training=training)


def _snapshot(model: str, commit: Commit) -> Snapshot:
    learned = tuple(commit.counters["learned"])
    weights, training = commit.files[MODEL_FILE], commit.files[TRAINING_FILE]
    return Snapshot(model, commit.window.index, commit.window.end_us, learned, weights, training)


def _folder(model: str, version: int) -> str:
    return f"snapshots/{model}/{version:06d}"
