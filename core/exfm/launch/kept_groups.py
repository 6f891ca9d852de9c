"""Keeps the groups of a run in its folder, so that a later call leaves them, and their running jobs, as they are."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from exfm.errors import RunError
from exfm.launch.groups import Group
from exfm.storage.temporary import make_folder
from exfm.storage.workspace import Workspace

LAUNCH_FOLDER = "launch"
GROUPS_FILE = f"{LAUNCH_FOLDER}/groups.json"
_FORMAT = 1


def read_groups(workspace: Workspace) -> Mapping[str, Sequence[str]]:
    """Reads the models of each group, by name; empty where no fleet was brought up."""
    if not workspace.exists(GROUPS_FILE):
        return {}
    kept = workspace.read_json(GROUPS_FILE)
    if kept["format"] != _FORMAT:
        raise RunError(f"{workspace.name(GROUPS_FILE)}: format {kept['format']}; this version of exfm reads {_FORMAT}")
    groups: dict[str, list[str]] = kept["groups"]
    return groups


def keep_groups(workspace: Workspace, groups: Sequence[Group]) -> None:
    """Writes the groups, unless they are there already; a group whose models have left the file is dropped."""
    content = {group.name: list(group.models) for group in groups}
    if content != read_groups(workspace):
        workspace.write_json(GROUPS_FILE, {"format": _FORMAT, "groups": content})


@contextmanager
def deciding_groups(log_dir: str) -> Iterator[None]:
    """Waits until no other call on this machine is deciding on the groups of the run."""
    make_folder(log_dir)
    # The file stays afterwards: if it were removed, two calls could hold locks on two files of this name.
    with Path(log_dir, "groups.lock").open("ab") as file:
        with suppress(OSError):  # this file system has no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
