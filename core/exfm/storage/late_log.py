"""Rows that came after their window had been committed: counted per model and window, under ``late/MODEL/``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

from exfm.interfaces.data_source import Window
from exfm.storage.workspace import Workspace, numbered

_NAMED = 3
"""How many names a warning or a note has."""


@dataclass(frozen=True)
class LateRows:
    """Rows of a committed window that a model has not read and will not read.

    Attributes:
        rows: how many there are, by name of the stream's part that they came in; empty where a part was written again
            with the same rows.
        parts: versions of all parts that overlap the window, by name, when the rows were counted.
    """

    window: Window
    rows: Mapping[str, int]
    parts: Mapping[str, str]

    @property
    def count(self) -> int:
        """How many rows there are in all parts."""
        return sum(self.rows.values())


class LateLog:
    """The counts of a workspace: one small file per model and window, replaced when more rows come."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def write(self, model: str, late: LateRows) -> None:
        """Keeps a count."""
        self._workspace.write_json(late_file(model, late.window.index), asdict(late))

    def read(self, model: str, window: int) -> LateRows | None:
        """Reads the count of a window; None where none was made."""
        try:
            raw = self._workspace.read_json(late_file(model, window))
        except FileNotFoundError:
            return None
        return LateRows(Window(**raw["window"]), raw["rows"], raw["parts"])

    def windows(self, model: str) -> list[int]:
        """Lists the windows of a model that have a count, in order."""
        return numbered(self._workspace.names(f"late/{model}"), ".json")

    def all(self, model: str) -> list[LateRows]:
        """Reads every count of a model in the order of windows."""
        counts = (self.read(model, window) for window in self.windows(model))
        return [late for late in counts if late is not None]


def late_file(model: str, window: int) -> str:
    """The path of a window's count."""
    return f"late/{model}/{window:06d}.json"


def some_of(names: Collection[str]) -> str:
    """Writes the first few of some names."""
    return ", ".join(sorted(names)[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
