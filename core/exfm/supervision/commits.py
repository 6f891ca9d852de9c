"""The commit log: one small manifest decides that a stage has done a window.

A stage first writes its files under names that depend on model and window alone, then the manifest that lists them
with their checksums. A crash before the manifest leaves files that the repeated window overwrites with equal ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from exfm.interfaces.data_source import Window
from exfm.supervision.workspace import FileRecord, Workspace

Stage = Literal["train", "supervise"]


@dataclass(frozen=True)
class Commit:
    """A stage's finished window.

    Attributes:
        counters: what results.json sums up, such as examples seen and seconds spent.
        files: the files that belong to it, by role.
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
        return self.workspace.exists(_path(stage, model, window))

    def windows(self, stage: Stage, model: str) -> list[int]:
        """Indices of the windows that are done, in order."""
        names = self.workspace.names(f"commits/{stage}/{model}")
        return [int(name.removesuffix(".json")) for name in names if name.endswith(".json")]

    def load(self, stage: Stage, model: str, window: int) -> Commit:
        """The manifest of a window that is done."""
        raw = self.workspace.read_json(_path(stage, model, window))
        files = {role: FileRecord(**record) for role, record in raw["files"].items()}
        return Commit(Window(**raw["window"]), raw["counters"], files)

    def commits(self, stage: Stage, model: str) -> Sequence[Commit]:
        """Every manifest of a stage, in order of windows."""
        return [self.load(stage, model, window) for window in self.windows(stage, model)]

    def add(self, stage: Stage, model: str, commit: Commit) -> None:
        """Commits: the files named must have been written before."""
        self.workspace.write_json(
            _path(stage, model, commit.window.index),
            {
                "window": asdict(commit.window),
                "counters": dict(commit.counters),
                "files": {role: asdict(record) for role, record in commit.files.items()},
            },
        )


def _path(stage: Stage, model: str, window: int) -> str:
    return f"commits/{stage}/{model}/{window:06d}.json"
