"""Adds up the files of a run's folder by model and kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from exfm.storage.workspace import Workspace

Kind = Literal["snapshots", "supervision", "predictions", "manifests", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_KINDS: Mapping[str, Kind] = {
    "snapshots": "snapshots",
    "supervision": "supervision",
    "predictions": "predictions",
    "commits": "manifests",
}


@dataclass
class Usage:
    """Counts the files of a model and kind; the model is empty for files of the whole run."""

    model: str
    kind: Kind
    bytes: int = 0
    files: int = 0


def disk_usage(workspace: Workspace) -> list[Usage]:
    """Adds up every file in a run's folder, by model and then by kind."""
    usage: dict[tuple[str, Kind], Usage] = {}
    prefix = len(workspace.root.rstrip("/")) + 1
    for path, entry in workspace.fs.find(workspace.root, detail=True).items():
        model, kind = _owner(path[prefix:])
        counted = usage.setdefault((model, kind), Usage(model, kind))
        # A file that is renamed while it is listed has no size.
        counted.bytes += entry.get("size") or 0
        counted.files += 1
    return sorted(usage.values(), key=lambda counted: (counted.model, KINDS.index(counted.kind)))


def _owner(path: str) -> tuple[str, Kind]:
    """Returns the model and kind of a file by its path in the run's folder."""
    folder, *names = path.split("/")
    if folder in ("commits", "vacuum"):  # STAGE/MODEL or FOLDER/MODEL
        names = names[1:]
    if folder == "models" and names:
        return names[0].removesuffix(".json").removesuffix(".draft"), "other"
    if len(names) < 2 or folder not in (*_KINDS, "vacuum", "late", "aliases"):
        return "", "other"
    return names[0], _KINDS.get(folder, "other")
