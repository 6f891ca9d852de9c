"""The snapshot registry: published, immutable versions of a model, each with the time up to which it has trained.

A snapshot is part of its window's commit, so there is no moment at which a reader could find half of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from safetensors.torch import load
from torch import Tensor

from exfm.interfaces.data_source import Window
from exfm.interfaces.ranks import Ranks
from exfm.supervision.commits import CommitLog
from exfm.supervision.tensor_files import write_tensors
from exfm.supervision.workspace import FileRecord, Workspace

MODEL_FILE = "model"
TRAINING_FILE = "training"


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
        commit = self.log.load("train", model, version)
        learned = tuple(commit.counters["learned"])
        weights, training = commit.files[MODEL_FILE], commit.files[TRAINING_FILE]
        return Snapshot(model, version, commit.window.end_us, learned, weights, training)

    def newest_first(self, model: str, before_us: int) -> Iterator[Snapshot]:
        """The snapshots whose watermark lies at or before a time, the newest first; retired ones are left out.

        They are asked for by the names in the manifests: a listing may lack the newest.
        """
        for version in self.log.newest_first("train", model):
            commit = self.log.load("train", model, version)
            if commit.window.end_us <= before_us and commit.files:
                snapshot = self.get(model, version)
                if self.workspace.exists(snapshot.weights.path):
                    yield snapshot

    def load(self, record: FileRecord) -> dict[str, Tensor]:
        """The tensors of one of a snapshot's files.

        Raises:
            RunError: the file is missing or corrupt.
        """
        tensors: dict[str, Tensor] = load(self.workspace.read_checked(record))
        return tensors

    def load_some(self, record: FileRecord, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """Those of a file's tensors whose names are wanted; of the others only the checksum is taken.

        Raises:
            RunError: the file is missing or corrupt.
        """
        with self.workspace.open_checked(record) as file:
            size = int.from_bytes(file.read(8), "little")
            entries = json.loads(file.read(size))
            found: dict[str, Any] = {}
            data = bytearray()
            for name in filter(wanted, entries.keys() - {"__metadata__"}):
                start, end = entries[name]["data_offsets"]
                file.seek(8 + size + start)
                found[name] = entries[name] | {"data_offsets": [len(data), len(data) + end - start]}
                data += file.read(end - start)
        header = json.dumps(found).encode()
        tensors: dict[str, Tensor] = load(len(header).to_bytes(8, "little") + header + data)
        return tensors

    def retire(self, model: str, needed_us: int) -> None:
        """Removes the snapshots that nobody can ask for any more; the newest two always stay.

        Args:
            needed_us: the earliest time for which a snapshot may still be wanted.
        """
        kept = [int(name) for name in self.workspace.names(f"snapshots/{model}")]
        needed = next((snapshot.version for snapshot in self.newest_first(model, needed_us)), -1)
        for version in kept[:-2]:
            if version < needed:
                self.workspace.remove(_folder(model, version))


def same_on_all(ranks: Ranks, candidates: Iterator[Snapshot]) -> Iterator[Snapshot]:
    """Yields the first process's snapshots on every process, whatever the others can see."""
    while True:
        own = next(candidates, None) if ranks.is_first else None
        data = ranks.broadcast(b"" if own is None else json.dumps(asdict(own)).encode())
        if not data:
            return
        raw = json.loads(data)
        weights, training = FileRecord(**raw.pop("weights")), FileRecord(**raw.pop("training"))
        yield Snapshot(**raw | {"learned": tuple(raw["learned"])}, weights=weights, training=training)


def _folder(model: str, version: int) -> str:
    return f"snapshots/{model}/{version:06d}"
