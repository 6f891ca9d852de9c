"""The commit log: one small manifest decides that a stage has done a window.

A stage first writes its files under names that depend on model, window and content, then creates the manifest that
lists them with their checksums, which only one of several writers can. A crash before the manifest leaves files that
the repeated window writes again, equal.

Each manifest names the one before it. So windows without rows need none, a manifest that is lost is noticed, and
manifests are read by name: a listing that lacks the newest names only makes a reader wait or do a window again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.storage.hashing import FileRecord
from exfm.storage.late_log import late_file
from exfm.storage.manifests import files_of, seal, unseal
from exfm.storage.workspace import Workspace, numbered

Stage = Literal["train", "supervise"]
STAGES: tuple[Stage, ...] = ("train", "supervise")


class OtherContentError(RunError):
    """A window was committed before, with other files."""


NONE = -1
"""Stands for the window before the first."""


@dataclass(frozen=True)
class WindowRead:
    """Which state of the stream a window was read in.

    Attributes:
        parts: versions of the stream's parts that overlapped the window, by name.
        until_us: the stream was complete until this time; before the window's end where more rows could still come.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    until_us: int | None = None


@dataclass(frozen=True)
class Commit:
    """A stage's finished window.

    Attributes:
        previous: index of the window that the stage had committed before; ``NONE`` for its first.
        counters: what results.json sums up, such as examples seen and seconds spent.
        files: the files that belong to it, by role; none of a window whose rows were all left out.
        read: the state of the stream in which the window was read.
        written_at: when it was committed, ISO 8601, UTC; set by ``CommitLog.add``.
    """

    window: Window
    counters: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    previous: int = NONE
    read: WindowRead = WindowRead()
    written_at: str = ""

    @property
    def is_incomplete(self) -> bool:
        """Whether more rows of the window could still come when it was read."""
        return self.read.until_us is not None and self.read.until_us < self.window.end_us


class CommitLog:
    """The manifests of a workspace, under ``commits/STAGE/MODEL/``."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._heads: dict[tuple[Stage, str], int] = {}
        self._links: dict[tuple[Stage, str, int], int] = {}  # manifests never change: their predecessors are kept

    def has(self, stage: Stage, model: str, window: int) -> bool:
        """Whether the window is done, asked by name."""
        if window == NONE or self._read(stage, model, window) is None:
            return False
        self.note_head(stage, model, window)
        return True

    def note_head(self, stage: Stage, model: str, window: int) -> None:
        """Remembers a window as committed, whatever a listing says later."""
        self._heads[stage, model] = max(window, self._heads.get((stage, model), NONE))

    def head(self, stage: Stage, model: str) -> int:
        """Index of the newest window that is done; ``NONE`` where there is none."""
        head = self._heads.get((stage, model), NONE)
        for window in reversed(self._listed(stage, model)):
            # The newest can be one whose writer died while a store took half of it.
            if window <= head or self._read(stage, model, window) is not None:
                head = max(head, window)
                break
        if head != NONE:
            self.note_head(stage, model, head)
        return head

    def _listed(self, stage: Stage, model: str) -> list[int]:
        return numbered(self.workspace.names(f"commits/{stage}/{model}"), ".json")

    def newest_first(self, stage: Stage, model: str) -> Iterator[int]:
        """Indices of the windows that are done, from the newest back along the chain.

        Raises:
            RunError: a manifest in the chain is missing or damaged.
        """
        window, follower = self.head(stage, model), NONE
        while window != NONE:
            key = (stage, model, window)
            if key not in self._links:
                commit = self._read(stage, model, window)
                if commit is None:
                    raise self._gap(stage, model, window, follower)
                self._links[key] = commit.previous
            yield window
            window, follower = self._links[key], window

    def windows(self, stage: Stage, model: str) -> list[int]:
        """Indices of the windows that are done, in order.

        Raises:
            RunError: a manifest in the chain is missing or damaged.
        """
        return list(self.newest_first(stage, model))[::-1]

    def _gap(self, stage: Stage, model: str, window: int, follower: int) -> RunError:
        url = self.workspace.url
        return RunError(
            f"{url}/{_path(stage, model, window)}: the manifest is missing or damaged, and window {follower} of "
            f"{model!r} follows it: doing the window now would train on it after later ones. Put the file back, or go "
            f"back to the windows before it with `exfm repair {url}`"
        )

    def load(self, stage: Stage, model: str, window: int) -> Commit:
        """The manifest of a window that is done.

        Raises:
            RunError: it is not done.
        """
        commit = self._read(stage, model, window)
        if commit is None:
            where = self.workspace.name(_path(stage, model, window))
            raise RunError(f"{where}: no such commit, or a damaged one{self.workspace.remedy}")
        return commit

    def _read(self, stage: Stage, model: str, window: int) -> Commit | None:
        """The manifest, or None where there is none, or half of one: half a JSON object is no JSON."""
        path = _path(stage, model, window)
        try:
            raw = unseal(self.workspace.read(path))
            files = {} if raw is None else files_of(raw, model)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(f"{self.workspace.name(path)}: damaged: {error}{self.workspace.remedy}") from error
        if raw is None:
            return None
        if "previous" not in raw:
            raise RunError(
                f"{self.workspace.name(path)}: a manifest of exfm 0.1, which counted windows otherwise. Read the run "
                "with that version, or start over in another run_dir"
            )
        read = WindowRead(**raw["read"])
        return Commit(Window(**raw["window"]), raw["counters"], files, raw["previous"], read, raw["written_at"])

    def remove_head(self, stage: Stage, model: str) -> None:
        """Takes back the newest commit, so that its window is done again. Its files stay."""
        window = self.head(stage, model)
        previous = self.load(stage, model, window).previous
        self.workspace.remove_file(_path(stage, model, window))
        self.workspace.remove_file(late_file(model, window))  # rows that came late are read with the rest
        self._heads[stage, model] = previous
        self._links.pop((stage, model, window), None)

    def commits(self, stage: Stage, model: str) -> Sequence[Commit]:
        """Every manifest of a stage, in order of windows."""
        return [self.load(stage, model, window) for window in self.windows(stage, model)]

    def add(self, stage: Stage, model: str, commit: Commit) -> bool:
        """Commits: the files named must have been written before.

        Returns:
            False where the window had been committed already, with the same files: by this stage before a crash, or
            by another job at the same time.

        Raises:
            OtherContentError: it had been committed with other files. They stand; this commit does not.
        """
        manifest = {
            "window": asdict(commit.window),
            "previous": commit.previous,
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "counters": dict(commit.counters),
            "files": {role: asdict(record) for role, record in commit.files.items()},
            "read": asdict(commit.read),
        }
        path = _path(stage, model, commit.window.index)
        data = seal(manifest)
        if self.workspace.create(path, data):
            self.note_head(stage, model, commit.window.index)
            return True
        standing = self._read(stage, model, commit.window.index)
        if standing is None:
            self.workspace.write(path, data)
            self.note_head(stage, model, commit.window.index)
            return True
        if standing.files != dict(commit.files):
            raise OtherContentError(
                f"{self.workspace.url}: window {commit.window} of {model!r} was committed by another job, with other "
                f"content; that commit stands ({stage})"
            )
        self.note_head(stage, model, commit.window.index)
        return False


def _path(stage: Stage, model: str, window: int) -> str:
    return f"commits/{stage}/{model}/{window:06d}.json"
