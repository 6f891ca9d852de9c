"""Files of a committed window that no commit names: what a writer left that died before its manifest.

A repeated window mostly gives files of the same names. On another number of processes it does not: the digest in the
name differs, and a reader that goes by the folder would see the window twice.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace

_NAME = re.compile(r"(?P<start>.*-)[0-9a-f]{12}(?P<end>\.[a-z]+)")


def orphans(workspace: Workspace, files: Collection[FileRecord]) -> list[str]:
    """Paths of files that differ from a window's committed ones in nothing but their digest.

    Nobody can commit them any more, as the window is committed.
    """
    committed = {record.path for record in files}
    found = []
    for folder in dict.fromkeys(path.rpartition("/")[0] for path in committed):
        kinds = {_kind(path) for path in committed if path.startswith(f"{folder}/")}
        paths = (f"{folder}/{name}" for name in workspace.names(folder))
        found += [path for path in paths if path not in committed and _kind(path) in kinds - {None}]
    return found


def remove_orphans(workspace: Workspace, files: Collection[FileRecord]) -> None:
    """Removes them."""
    for path in orphans(workspace, files):
        workspace.remove_file(path)


def _kind(path: str) -> tuple[str, str] | None:
    name = _NAME.fullmatch(path.rpartition("/")[2])
    return None if name is None else (name["start"], name["end"])
