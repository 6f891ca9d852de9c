"""The commit log: one small manifest decides that a stage has done a window.

A stage first writes its files under names that depend on model, window and content, then creates the manifest that
lists them with their checksums, which only one of several writers can. A crash before the manifest leaves files that
the repeated window writes again, equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.supervision.hashing import FileRecord
from exfm.supervision.manifests import files_of, seal, unseal
from exfm.supervision.workspace import Workspace, numbered

Stage = Literal["train", "supervise"]
STAGES: tuple[Stage, ...] = ("train", "supervise")


class OtherContentError(RunError):
    """A window was committed before, with other files."""


@dataclass(frozen=True)
class Commit:
    """A stage's finished window.

    Attributes:
        counters: what results.json sums up, such as examples seen and seconds spent.
        files: the files that belong to it, by role; none of a window without rows.
    """

    window: Window
    counters: Mapping[str, Any]
    files: Mapping[str, FileRecord]


class CommitLog:
    """The manifests of a workspace, under ``commits/STAGE/MODEL/``."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def has(self, stage: Stage, model: str, window: int) -> bool:
        """Whether the window is done."""
        return self._read(stage, model, window) is not None

    def windows(self, stage: Stage, model: str) -> list[int]:
        """Indices of the windows that are done, in order."""
        windows = numbered(self.workspace.names(f"commits/{stage}/{model}"), ".json")
        # commits come in order: only the newest can be one whose writer died while a store took half of it
        if windows and self._read(stage, model, windows[-1]) is None:
            windows.pop()
        return windows

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
        return Commit(Window(**raw["window"]), raw["counters"], files)

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
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "counters": dict(commit.counters),
            "files": {role: asdict(record) for role, record in commit.files.items()},
        }
        path = _path(stage, model, commit.window.index)
        data = seal(manifest)
        if self.workspace.create(path, data):
            return True
        standing = self._read(stage, model, commit.window.index)
        if standing is None:
            self.workspace.write(path, data)
            return True
        if standing.files != dict(commit.files):
            raise OtherContentError(
                f"{self.workspace.url}: window {commit.window} of {model!r} was committed by another job, with other "
                f"content; that commit stands ({stage})"
            )
        return False


def _path(stage: Stage, model: str, window: int) -> str:
    return f"commits/{stage}/{model}/{window:06d}.json"
