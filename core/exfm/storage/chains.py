"""What a model has committed in one stage, checked file by file: where its chain of manifests is sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.storage.commits import NONE, CommitLog, Stage
from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import MissingFileError, Workspace, numbered

_ROWS = "rows"


class Snapshot(Enum):
    """What is there of a window's snapshot."""

    NONE = "the window has none"
    GONE = "not all of it, as where it was retired"
    DAMAGED = "something else than was committed"
    WHOLE = "all of it"


@dataclass(frozen=True)
class Entry:
    """A committed window.

    Attributes:
        window: None of a manifest that cannot be read.
        files: those that the manifest names.
        problems: why its model cannot go on from it, in words.
    """

    index: int
    window: Window | None = None
    files: tuple[FileRecord, ...] = ()
    problems: tuple[str, ...] = ()
    snapshot: Snapshot = Snapshot.NONE


@dataclass
class Chain:
    """The windows that a model has committed in one stage, in order.

    Attributes:
        last: index of the last window that stays, where windows go; ``NONE`` where all go.
    """

    stage: Stage
    model: str
    entries: list[Entry]
    last: int | None = None

    @property
    def kept(self) -> list[Entry]:
        """The windows that stay."""
        return [one for one in self.entries if self.last is None or one.index <= self.last]

    @property
    def removed(self) -> list[Entry]:
        """The windows that go."""
        return self.entries[len(self.kept) :]

    def go_back(self, before: int, to_a_snapshot: bool) -> None:
        """Drops the windows from one on; where a model is to go on from it, down to a snapshot that can be read."""
        stays = [one for one in self.kept if one.index < before]
        if to_a_snapshot:
            stays = [one for one in stays if one.snapshot is Snapshot.WHOLE]
        self.last = stays[-1].index if stays else NONE


def read_chain(log: CommitLog, stage: Stage, model: str) -> Chain:
    """Reads a chain and checks every file of it."""
    entries: list[Entry] = []
    before = NONE
    indices = numbered(log.workspace.names(f"commits/{stage}/{model}"), ".json")
    for index in indices:
        entries.append(_entry(log, stage, model, index, before, newest=index == indices[-1]))
        before = index
    return Chain(stage, model, entries)


def _entry(log: CommitLog, stage: Stage, model: str, index: int, before: int, newest: bool) -> Entry:
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
    snapshot = [error for role, error in errors.items() if role != _ROWS]
    state = _state(snapshot)
    # Of older ones those that nobody needs are removed, and a damaged one is passed over.
    broken = [error for role, error in errors.items() if role == _ROWS or newest]
    problems += [_words(error, workspace) for error in broken if error is not None]
    return Entry(index, commit.window, tuple(commit.files.values()), tuple(problems), state)


def _state(errors: Sequence[RunError | None]) -> Snapshot:
    if not errors:
        return Snapshot.NONE
    if all(error is None for error in errors):
        return Snapshot.WHOLE
    gone = all(error is None or isinstance(error, MissingFileError) for error in errors)
    return Snapshot.GONE if gone else Snapshot.DAMAGED


def _error(workspace: Workspace, record: FileRecord) -> RunError | None:
    try:
        workspace.check(record)
    except RunError as error:
        return error
    return None


def _words(error: RunError, workspace: Workspace) -> str:
    return str(error).replace(workspace.remedy, "")
