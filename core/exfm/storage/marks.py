"""Marks the windows whose rows were let go, so that readers can tell removed files from lost files.

``vacuum/FOLDER/MODEL/NNNNNN.json`` says that files of windows before that index may be gone. A mark is created before
the first of them is removed. The largest counts, so that of two concurrent vacuums neither takes back the other's mark.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from exfm.storage.manifests import seal

if TYPE_CHECKING:
    from exfm.storage.workspace import Workspace

Rows = Literal["predictions", "supervision"]
ROWS: tuple[Rows, ...] = ("supervision", "predictions")

_ROW_FILE = re.compile(
    r"(?P<folder>predictions|supervision)/(?P<model>[^/]+)/(window|backfill)-(?P<window>\d{6,})-[^/]*"
)
_SNAPSHOT = re.compile(r"(?P<folder>snapshots/(?P<model>[^/]+)/\d{6,})/[^/]*")
_MARK = re.compile(r"(\d{6,})\.json", re.ASCII)


def first_kept_rows(workspace: Workspace, folder: Rows, model: str) -> int:
    """Returns the index of the first window whose rows were not let go; 0 without a mark."""
    return max(_marks(workspace, folder, model), default=0)


def mark(workspace: Workspace, folder: Rows, model: str, first_kept: int) -> None:
    """Marks the rows of the windows before an index as let go, and removes the smaller marks."""
    if first_kept <= first_kept_rows(workspace, folder, model):
        return
    workspace.create(_path(folder, model, first_kept), seal({"at": datetime.now(UTC).isoformat(timespec="seconds")}))
    for index in _marks(workspace, folder, model):
        if index < first_kept:
            workspace.remove_file(_path(folder, model, index))


def take_back(workspace: Workspace, folder: Rows, model: str, first_removed: int) -> None:
    """Lowers a mark where the windows from an index on run again, because their rows will then be there."""
    larger = [index for index in _marks(workspace, folder, model) if index > first_removed]
    if larger and first_removed > 0:
        mark(workspace, folder, model, first_removed)
    for index in larger:
        workspace.remove_file(_path(folder, model, index))


def why_missing(workspace: Workspace, path: str) -> str:
    """Says why a committed file is gone, if it was let go; empty if it is lost."""
    rows, snapshot = _ROW_FILE.fullmatch(path), _SNAPSHOT.fullmatch(path)
    if rows is not None:
        folder: Rows = "supervision" if rows["folder"] == "supervision" else "predictions"
        first = first_kept_rows(workspace, folder, rows["model"])
        if int(rows["window"]) < first:
            return (
                f"`exfm vacuum` has removed the {folder} of {rows['model']!r} before window {first}" + _REMEDY[folder]
            )
    # Of a retired snapshot no file is left; where a single file is missing, the snapshot is damaged.
    if snapshot is not None and not workspace.names(snapshot["folder"]):
        return (
            f"the snapshot is not stored any more. It was retired, or its folder was removed: models."
            f"{snapshot['model']}.keep.snapshots says how many stay"
        )
    return ""


_REMEDY = {
    "supervision": ". A student that begins after it needs none of them (models.STUDENT.start); keep.supervision of "
    "the teacher says how long later ones stay",
    "predictions": "; keep.predictions of the model says how long later ones stay",
}


def _marks(workspace: Workspace, folder: Rows, model: str) -> list[int]:
    names = workspace.names(f"vacuum/{folder}/{model}")
    return [int(match[1]) for name in names if (match := _MARK.fullmatch(name))]


def _path(folder: Rows, model: str, first_kept: int) -> str:
    return f"vacuum/{folder}/{model}/{first_kept:06d}.json"
