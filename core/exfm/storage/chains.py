"""Checks every committed file of a model in a stage, and determines up to which window the chain is intact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.mappings import defined
from exfm.storage.commits import NONE, CommitLog, Stage
from exfm.storage.delta import Delta
from exfm.storage.hashing import FileRecord
from exfm.storage.merged_rows import check_committed
from exfm.storage.row_shards import is_rows
from exfm.storage.workspace import LetGoError, MissingFileError, Workspace, numbered


class SnapshotState(Enum):
    """Classifies the files of a window's snapshot."""

    NONE = "the window has no snapshot"
    GONE = "files are missing, as after retirement"
    DAMAGED = "a file has other content than was committed"
    WHOLE = "all files are intact"


@dataclass(frozen=True)
class Entry:
    """Describes a committed window after its files were checked.

    Attributes:
        index: index of the window.
        window: the window; None if the manifest cannot be read.
        files: the files that the manifest names.
        problems: messages that say why the model cannot continue from this window.
        snapshot: state of the window's snapshot.
        held: whether training alone reads the snapshot.
    """

    index: int
    window: Window | None = None
    files: tuple[FileRecord, ...] = ()
    problems: tuple[str, ...] = ()
    snapshot: SnapshotState = SnapshotState.NONE
    held: bool = False


@dataclass
class Chain:
    """Lists the windows that a model has committed in a stage, in order.

    Attributes:
        stage: stage of the commits.
        model: name of the model.
        entries: the committed windows.
        last: index of the last window to keep, or ``NONE`` to remove all; None removes no window.
    """

    stage: Stage
    model: str
    entries: list[Entry]
    last: int | None = None

    @property
    def kept(self) -> list[Entry]:
        """Returns the windows that a repair keeps."""
        return [entry for entry in self.entries if self.last is None or entry.index <= self.last]

    @property
    def removed(self) -> list[Entry]:
        """Returns the windows that a repair removes."""
        return self.entries[len(self.kept) :]

    def go_back(self, before: int, to_a_snapshot: bool) -> None:
        """Keeps only the windows before an index.

        Args:
            before: index of the first window to remove.
            to_a_snapshot: also remove later windows than the newest intact snapshot, because training continues from
                a snapshot.
        """
        self.last, kept = NONE, self.kept
        for entry in kept:
            if entry.index < before and not (to_a_snapshot and entry.snapshot is not SnapshotState.WHOLE):
                self.last = entry.index


def read_chain(log: CommitLog, stage: Stage, model: str) -> Chain:
    """Reads the chain of a model's manifests in a stage, and checks every file that they name."""
    entries: list[Entry] = []
    states: dict[int, SnapshotState] = {}
    before = NONE
    indices = numbered(log.workspace.names(f"commits/{stage}/{model}"), ".json")
    for index in indices:
        entries.append(_entry(log, stage, model, index, before, states, newest=index == indices[-1]))
        states[index] = entries[-1].snapshot
        before = index
    return Chain(stage, model, entries)


def _entry(
    log: CommitLog,
    stage: Stage,
    model: str,
    index: int,
    before: int,
    states: Mapping[int, SnapshotState],
    newest: bool,
) -> Entry:
    """Reads the manifest of a window and checks its files.

    Args:
        before: index of the window listed before it.
        states: of the snapshots of earlier windows.
        newest: whether it is the newest window.
    """
    workspace = log.workspace
    try:
        commit = log.load(stage, model, index)
    except RunError as error:
        return Entry(index, problems=(_words(error, workspace),))
    problems = []
    if commit.previous != before:
        where = workspace.name(f"commits/{stage}/{model}")
        problems.append(f"{where}: a manifest before that of window {commit.window} is missing")
    errors = {role: _error(workspace, record) for role, record in commit.files.items()}
    state = _snapshot_state([error for role, error in errors.items() if not is_rows(role)])
    # Snapshots of older windows may be retired, and readers skip a damaged snapshot: only the newest is needed.
    for role, failure in errors.items():
        let_go = is_rows(role) and isinstance(failure, LetGoError)  # rows that a vacuum has removed are no damage
        if failure is not None and not let_go and (is_rows(role) or newest):
            problems.append(_words(failure, workspace))
    delta = Delta.from_counters(commit.counters)
    if delta is not None and state is SnapshotState.WHOLE:
        # It is put together from the snapshot that it follows.
        state = states.get(delta.after, SnapshotState.GONE)
        if newest and state is not SnapshotState.WHOLE:
            where = workspace.name(f"snapshots/{model}/{delta.after:06d}")
            problems.append(f"{where}: window {commit.window} follows this snapshot, and {state.value}")
    held = bool(commit.counters.get("held"))
    return Entry(index, commit.window, tuple(commit.files.values()), tuple(problems), state, held)


def _snapshot_state(errors: Sequence[RunError | None]) -> SnapshotState:
    if not errors:
        return SnapshotState.NONE
    failures = defined(errors)
    if not failures:
        return SnapshotState.WHOLE
    if all(isinstance(error, MissingFileError) for error in failures):
        return SnapshotState.GONE
    return SnapshotState.DAMAGED


def _error(workspace: Workspace, record: FileRecord) -> RunError | None:
    try:
        check_committed(workspace, record)
    except RunError as error:
        return error
    return None


def _words(error: RunError, workspace: Workspace) -> str:
    """Returns the message without its advice to run ``exfm repair``, because this is that command."""
    return str(error).replace(workspace.remedy, "")
