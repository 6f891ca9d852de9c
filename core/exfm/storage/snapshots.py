"""Publishes and finds snapshots: immutable versions of a model, each with the time up to which it has trained.

Each process writes the boxes of tensors that it stores, into separate files; an index says where each box lies. A
snapshot belongs to the commit of its window, so a reader never sees a part of a snapshot. The commit also says
whether the snapshot is published or held: training goes on from a held snapshot, and nobody else reads it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exfm.config.keep_section import NEWEST, Kept
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.mappings import map_values
from exfm.storage.aliases import Aliases
from exfm.storage.commits import NONE, Commit, CommitLog
from exfm.storage.delta import Delta
from exfm.storage.hashing import FileRecord
from exfm.storage.progress import first_kept_window
from exfm.storage.readers import Readers
from exfm.storage.row_shards import is_rows
from exfm.storage.snapshot_links import linked, stand_in
from exfm.storage.workspace import Workspace, base_name, numbered

if TYPE_CHECKING:
    from torch import Tensor

    from exfm.interfaces.local_shards import StateTensor
    from exfm.interfaces.process_group import ProcessGroup
    from exfm.storage.delta_reader import DeltaReader
    from exfm.storage.shard_reader import Destinations, RowGrowth, ShardReader
    from exfm.storage.shard_writer import Shards

MODEL_FILE = "model"
TRAINING_FILE = "training"
_INDEX = "snapshot"

READING_S = 60.0
"""Seconds for which an unneeded snapshot is kept: a reader may have chosen it as the newest, and not opened it yet."""

LEAVING = 6
"""Limit of unneeded snapshots kept: where a window takes a second, the snapshots of a minute could fill the disk."""


@dataclass(frozen=True)
class TensorFiles:
    """Lists the files of a snapshot that hold its weights, or its training state.

    Attributes:
        role: ``MODEL_FILE`` or ``TRAINING_FILE``.
        files: of the processes that wrote it, by rank.
        index: the file that places the tensors; of a version without shards it does not, and there is a single file.
        model: name of the model.
        after: version of the snapshot of which the files have changes alone; None if they have everything.
    """

    role: str
    files: tuple[FileRecord, ...]
    index: FileRecord
    model: str = ""
    after: int | None = None

    @property
    def bytes(self) -> int:
        """The size of the files."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True)
class Snapshot:
    """Describes a committed version of a model, which has trained only on examples before ``watermark_us``.

    Attributes:
        model: name of the model.
        version: index of the window after which it was committed.
        watermark_us: end of that window.
        learned: tasks whose labels the model has seen.
        weights: files with the model's weights.
        training: files with the state that continued training needs besides.
        held: by task, why the snapshot is held; empty if it is published.
        delta: how it follows from a snapshot before it; None if it is full.
    """

    model: str
    version: int
    watermark_us: int
    learned: tuple[str, ...]
    weights: TensorFiles
    training: TensorFiles
    held: Mapping[str, str] = field(default_factory=dict)
    delta: Delta | None = None


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
        self, model: str, window: Window, weights: Shards, training: Shards, process_group: ProcessGroup
    ) -> dict[str, FileRecord]:
        """Writes a snapshot's files; the window's commit waits until they are on disk, and publishes or holds them.

        A collective operation.

        Args:
            model: name of the model.
            window: the window after which the snapshot is taken.
            weights: tensors for serving and labelling.
            training: tensors that continued training needs besides.
            process_group: the processes that store the tensors.

        Returns:
            The files of all processes by role, for the window's commit; empty on any rank but zero.
        """
        folder, rank = _folder(model, window.index), process_group.rank
        shards = {MODEL_FILE: weights, TRAINING_FILE: training}
        written: dict[str, FileRecord] = {}
        for role, mine in shards.items():
            # The first process has a file of each role, because a snapshot is known by them.
            if mine.tensors or process_group.is_rank_zero:
                metadata = {"watermark_us": str(window.end_us)} if role == MODEL_FILE else {}
                written[_role(role, rank)] = self._write(folder, role, rank, mine, metadata)
        files = gather_records(process_group, written)
        if not process_group.is_rank_zero:
            return {}
        index: dict[str, Any] = {}
        for role, mine in shards.items():
            names = {str(rank): files[_role(role, rank)].path for rank in mine.ranks}
            index[role] = mine.index_of(map_values(base_name, names))
        content = {"model": model, "version": window.index, "watermark_us": window.end_us, "tensors": index}
        # Without spaces: of thousands of tensors the index would be mostly spaces.
        data = json.dumps(content, separators=(",", ":"), allow_nan=False).encode()
        return {**files, _INDEX: self.workspace.write(f"{folder}/snapshot-{{digest}}.json", data, sync=False)}

    def _write(self, folder: str, role: str, rank: int, shards: Shards, metadata: Mapping[str, str]) -> FileRecord:
        # The name of a single process's file has no rank, as before there were shards.
        number = f"r{rank:04d}-" if rank else ""
        # Rank zero's commit waits for its files; other machines may write those of other ranks.
        from exfm.storage.tensor_files import write_tensors  # here, as it needs torch

        with self.workspace.writing(f"{folder}/{role}-{number}{{digest}}.safetensors", sync=rank > 0) as file:
            write_tensors(file, shards.tensors, metadata)
        return file.record()

    def get(self, model: str, version: int) -> Snapshot:
        """Returns a committed version."""
        commit = self.log.load("train", model, version)
        if not commit.files:
            raise RunError(f"{self.workspace.url}: window {version} of {model!r} has no snapshot")
        return _snapshot(model, commit)

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
        # A retired snapshot has lost all files. If a single file is missing, opening it must fail with an error.
        return any(self.workspace.exists(file.path) for file in (*snapshot.weights.files, *snapshot.training.files))

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

    def load(
        self,
        files: TensorFiles,
        select: Callable[[str], bool] = lambda name: True,
        into: Destinations = lambda name: None,
        growth: RowGrowth | None = None,
    ) -> dict[str, StateTensor]:
        """Reads tensors of a snapshot, however many files there are, after checking the files that hold them.

        Args:
            files: the snapshot's weights, or its training state.
            select: tells by its name whether a tensor is read; by default all are read.
            into: returns the destination of a tensor, such as a model's parameter, of which this process reads its
                boxes; None for a new tensor, whole. A destination of another shape is not used.
            growth: reads tensors into destinations with more rows; without it these are not used.

        Returns:
            Destinations and new tensors, by name. A large new tensor that lies whole in a file is memory-mapped: the
            caller copies what it keeps.

        Raises:
            RunError: a file is missing or corrupt, or there is no memory. Destinations may have been written.
        """
        return self._reader(files).read(select, into, growth)

    def load_whole(self, files: TensorFiles, select: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
        """Reads whole tensors of a snapshot, see ``load``."""
        from exfm.interfaces.local_shards import whole_tensors  # here, as it needs torch

        return whole_tensors(self.load(files, select))

    def describe(self, files: TensorFiles) -> dict[str, Tensor]:
        """Describes the tensors of a snapshot, by name: tensors on the meta device, which have no memory."""
        return self._reader(files).describe()

    def _reader(self, files: TensorFiles) -> ShardReader | DeltaReader:
        # Here, because only readers of tensors need torch, and most commands that list snapshots do not.
        from exfm.storage.snapshot_tensors import open_tensors

        chain = [files]
        # Ends, because each snapshot of a chain is older than the one after it.
        while (after := chain[-1].after) is not None:
            before = self.get(files.model, after)
            chain.append(before.weights if files.role == MODEL_FILE else before.training)
        return open_tensors(self.workspace, chain)

    def versions(self, model: str) -> list[int]:
        """Lists the versions whose folders exist, in order."""
        return numbered(self.workspace.names(f"snapshots/{model}"))

    def unneeded(self, model: str, needed_us: int, keep: Kept = NEWEST) -> list[int]:
        """Lists the stored versions that no stage can request any more, in order.

        The newest ``NEWEST`` stay, those that the model keeps, those that an alias points at or can be rolled back to,
        and those at which another run has frozen the model as a teacher; and the snapshots that these are put together
        from.

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
        needing = (set(stored) - set(unneeded)) | stand_in(self.log, model, stored)
        kept = linked(self.log, model, needing)
        return [version for version in unneeded if version not in kept]

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
        weights, training = _tensor_files(raw.pop("weights")), _tensor_files(raw.pop("training"))
        delta = raw.pop("delta")
        raw["delta"] = None if delta is None else Delta(**delta)
        yield Snapshot(**raw | {"learned": tuple(raw["learned"])}, weights=weights, training=training)


def gather_records(process_group: ProcessGroup, files: Mapping[str, FileRecord]) -> dict[str, FileRecord]:
    """Gathers the records of files that the processes have written, on rank zero; empty on other ranks."""
    gathered: dict[str, FileRecord] = {}
    for data in process_group.gather_bytes(json.dumps(map_values(asdict, files)).encode()):
        for role, record in json.loads(data).items():
            gathered[role] = FileRecord(**record)
    return gathered


def _snapshot(model: str, commit: Commit) -> Snapshot:
    learned = tuple(commit.counters["learned"])
    index = commit.files[_INDEX]
    delta = Delta.from_counters(commit.counters)
    if delta is not None and not 0 <= delta.after < commit.window.index:
        raise RunError(f"window {commit.window} of {model!r}: a manifest of a delta that follows no earlier snapshot")
    files: dict[str, TensorFiles] = {}
    for role in (MODEL_FILE, TRAINING_FILE):
        # Later ranks have a number behind a dot.
        names = sorted((name for name in commit.files if name.partition(".")[0] == role), key=_rank)
        after = None if delta is None else delta.after
        files[role] = TensorFiles(role, tuple(commit.files[name] for name in names), index, model, after)
    # A manifest of a version without gates has no such counter: all of its snapshots were published.
    held = commit.counters.get("held", {})
    window = commit.window
    return Snapshot(model, window.index, window.end_us, learned, files[MODEL_FILE], files[TRAINING_FILE], held, delta)


def _tensor_files(raw: Mapping[str, Any]) -> TensorFiles:
    files = tuple(FileRecord(**record) for record in raw["files"])
    return TensorFiles(raw["role"], files, FileRecord(**raw["index"]), raw["model"], raw["after"])


def _role(role: str, rank: int) -> str:
    """Returns the role of a rank's file in a manifest; that of the first is the role, as before there were shards."""
    return f"{role}.{rank}" if rank else role


def _rank(role: str) -> int:
    return int(role.partition(".")[2] or 0)


def _folder(model: str, version: int) -> str:
    return f"snapshots/{model}/{version:06d}"
