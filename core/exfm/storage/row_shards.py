"""Names the row files of a window in its manifest: one of a single process, or one of each of several processes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from exfm.interfaces.data_source import Shard
from exfm.storage.hashing import FileRecord

_ROLE = re.compile(r"rows(-\d+-of-\d+)?")
_FILE = re.compile(r".*/window-\d+-(?P<index>\d+)-of-(?P<count>\d+)-[^/]*")


def shard_suffix(shard: Shard) -> str:
    """Returns the end of the name of a process's row file; empty for a single process."""
    if shard.count == 1:
        return ""
    return f"-{shard.index}-of-{shard.count}"


def rows_role(shard: Shard) -> str:
    """Returns the role of a process's row file in a manifest."""
    return f"rows{shard_suffix(shard)}"


def is_rows(role: str) -> bool:
    """Tells whether a file with a role in a manifest holds rows."""
    return _ROLE.fullmatch(role) is not None


def row_records(files: Mapping[str, FileRecord]) -> list[FileRecord]:
    """Lists the row files among the files of a manifest: one, or one of each process, in the order of the manifest."""
    return [record for role, record in files.items() if is_rows(role)]


def files_of_process(records: Sequence[FileRecord], shard: Shard) -> list[FileRecord]:
    """Lists the files with all rows of a window that belong to a process; none where they may be in any file.

    Args:
        records: the row files of the window, written by the same number of processes, or by a multiple.
    """
    files: list[FileRecord] = []
    for record in records:
        match = _FILE.fullmatch(record.path)
        if match is None or int(match["count"]) % shard.count:
            return []
        # Row i was written by process i % count, and i % shard.count follows from that.
        if int(match["index"]) % shard.count == shard.index:
            files.append(record)
    return files
