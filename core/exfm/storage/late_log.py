"""Counts rows that arrived after their window had been committed, per model and window, under ``late/MODEL/``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from exfm.interfaces.data_source import Window
from exfm.storage.workspace import Workspace, numbered

_MAX_NAMES = 3
"""Names that a warning or a note lists before an ellipsis."""


@dataclass(frozen=True)
class LateRows:
    """Counts the rows of a committed window that a model has not read and will not read.

    Attributes:
        window: the committed window.
        rows: row counts by the name of the stream's part that holds them; empty if a part was rewritten with equal
            rows.
        parts: versions of all parts that overlap the window, by name, when the rows were counted.
        file: the file that the rows were set aside in; empty without rows.
    """

    window: Window
    rows: Mapping[str, int]
    parts: Mapping[str, str]
    file: str = ""

    @property
    def count(self) -> int:
        """Returns the number of rows in all parts."""
        return sum(self.rows.values())


class LateLog:
    """Stores the counts in a workspace: a small file per model and window, replaced when more rows arrive."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def write(self, model: str, late: LateRows) -> None:
        """Stores the count of a window."""
        self._workspace.write_json(late_file(model, late.window.index), asdict(late))

    def set_aside(self, model: str, window: int, rows: pa.Table) -> str:
        """Writes the late rows of a window to a file; returns its path."""
        path = f"late/{model}/{window:06d}-{{digest}}.parquet"
        with self._workspace.writing(path) as file:
            pq.write_table(rows, file)
        return file.record().path

    def read_aside(self, late: LateRows) -> pa.Table:
        """Reads the late rows of a window that were set aside."""
        return pq.read_table(pa.BufferReader(self._workspace.read(late.file)))

    def read(self, model: str, window: int) -> LateRows | None:
        """Reads the count of a window; returns None if it was never counted."""
        try:
            raw = self._workspace.read_json(late_file(model, window))
        except FileNotFoundError:
            return None
        return LateRows(Window(**raw["window"]), raw["rows"], raw["parts"], raw.get("file", ""))

    def windows(self, model: str) -> list[int]:
        """Lists the windows of a model that have a count, in order."""
        return numbered(self._workspace.names(f"late/{model}"), ".json")

    def all(self, model: str) -> list[LateRows]:
        """Reads every count of a model in the order of windows."""
        counts: list[LateRows] = []
        for window in self.windows(model):
            late = self.read(model, window)
            if late is not None:  # another process may remove a count between listing and reading
                counts.append(late)
        return counts


def late_file(model: str, window: int) -> str:
    """Returns the path of a window's count."""
    return f"late/{model}/{window:06d}.json"


def first_names(names: Collection[str]) -> str:
    """Lists the first names in alphabetical order, with an ellipsis if there are more."""
    ellipsis = ", ..." if len(names) > _MAX_NAMES else ""
    return ", ".join(sorted(names)[:_MAX_NAMES]) + ellipsis
