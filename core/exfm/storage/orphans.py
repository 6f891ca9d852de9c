"""Finds files of a committed window that no manifest names, left by a writer that died before its commit.

A repeated window mostly writes files of the same names. With another number of processes the names differ, and a
reader that lists the folder would see the window twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace

# Files of one of several processes count as those of a single process.
_NAME = re.compile(r"(?P<start>.*?-)(\d+-of-\d+-|r\d+-)?[0-9a-f]{12}(?P<end>\.[a-z]+)")


def find_orphans(workspace: Workspace, files: Collection[FileRecord]) -> list[str]:
    """Lists the files whose paths differ from the committed files of a window only in process and digest.

    No job can commit them any more, because the window is committed.

    Args:
        workspace: the run's folder.
        files: the committed files of the window.
    """
    committed = {record.path for record in files}
    orphans: list[str] = []
    for folder in dict.fromkeys(path.rpartition("/")[0] for path in committed):
        kinds = {_kind(path) for path in committed if path.startswith(f"{folder}/")}
        # Files without a digest in their names have no orphans.
        starts = tuple(kind[0] for kind in kinds if kind is not None)
        for name in workspace.names(folder):
            path = f"{folder}/{name}"
            # By the start first, because a folder holds files of all windows.
            if name.startswith(starts) and path not in committed and _kind(path) in kinds:
                orphans.append(path)
    return orphans


def remove_orphans(workspace: Workspace, files: Collection[FileRecord]) -> None:
    """Removes the orphans of a committed window."""
    for path in find_orphans(workspace, files):
        workspace.remove_file(path)


def _kind(path: str) -> tuple[str, str] | None:
    """Returns a file's name before and after its process and digest; None where the name has no digest."""
    name = _NAME.fullmatch(path.rpartition("/")[2])
    return None if name is None else (name["start"], name["end"])
