"""Keeps the content of many footers in the user's cache folder, so that the next job need not open every file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exfm.sources import TimeUnit
from exfm_plugins.sources.parquet.order import Group

LEAST_FILES = 100
"""Fewer footers are read anew, which takes no time."""

_FORMAT = 1


@dataclass(frozen=True)
class Footer:
    """Holds the names of the columns and the row groups with rows, as read from a footer."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]


class FooterCache:
    """Reads and writes footers by path and version of their files; a cache that cannot be read or written is none.

    Args:
        url: the location of the files.
        event_time, unit: the column whose bounds are kept, and what it counts.
    """

    def __init__(self, url: str, event_time: str, unit: TimeUnit) -> None:
        location = url if "://" in url else str(Path(url).absolute())
        key = json.dumps([_FORMAT, location, event_time, unit])
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "exfm", "parquet")
        self._path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def read(self) -> dict[tuple[str, str], Footer]:
        """Reads the footers of the last job."""
        footers: dict[tuple[str, str], Footer] = {}
        try:
            entries = json.loads(self._path.read_bytes())
            for path, (version, names, groups) in entries.items():
                read = tuple(Group(index, row, tuple(bounds) if bounds else None) for index, row, bounds in groups)
                footers[path, version] = Footer(tuple(names), read)
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
        return footers

    def write(self, footers: Mapping[tuple[str, str], Footer]) -> None:
        """Writes the footers, if they are many."""
        if len(footers) < LEAST_FILES:
            return
        entries = {}
        for (path, version), footer in footers.items():
            groups = [[group.index, group.first_row, group.bounds] for group in footer.groups]
            entries[path] = [version, footer.names, groups]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first, so that no job reads half of it.
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(entries, file)
            Path(file.name).replace(self._path)
