"""Reads footers, each once, and keeps many in the user's cache folder, so that the next job opens new files alone."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from exfm.errors import suggestion
from exfm.sources.columns import check_time_type
from exfm.sources.row_groups.bounds import group_bounds
from exfm.sources.row_groups.order import RowGroup, kept_rows
from exfm.sources.times import YEAR_9999_US, TimeUnit

if TYPE_CHECKING:
    import pyarrow.parquet as pq

LEAST_FILES = 100
"""Fewer footers are read anew, which takes no time."""

FOOTERS_AT_ONCE = 16
"""Threads that read footers: of a remote file system they mostly wait, so threads help although there is a GIL."""

_FORMAT = 4
_FIELD_ID = b"PARQUET:field_id"


@dataclass(frozen=True)
class Footer:
    """Holds the names of the columns, their field ids where the writer set them, and the row groups with rows."""

    names: tuple[str, ...]
    field_ids: tuple[int | None, ...]
    groups: tuple[RowGroup, ...]

    def check_names(self, location: str, columns: Iterable[str]) -> None:
        """Raises ValueError if the file has one of the columns more than once.

        Args:
            location: the source and the file, for messages.
        """
        if len(set(self.names)) == len(self.names):
            return
        counts = Counter(self.names)
        for column in columns:
            if counts[column] > 1:
                raise ValueError(
                    f"{location} has more than one column {column!r}: write the file with one of each name"
                )


def read_columns(file: pq.ParquetFile) -> Footer:
    """Reads the columns of a file, without its row groups."""
    schema = file.schema_arrow
    field_ids: list[int | None] = []
    for column in schema:
        field_id = (column.metadata or {}).get(_FIELD_ID)
        field_ids.append(None if field_id is None else int(field_id))
    return Footer(tuple(schema.names), tuple(field_ids), ())


def read_footer(
    location: str, file: pq.ParquetFile, event_time: str, unit: TimeUnit, kept_R: NDArray[np.bool_] | None = None
) -> Footer:
    """Reads the footer of a file.

    Args:
        location: the source and the file, for messages.
        event_time, unit: the column of the time, and what it counts.
        kept_R: the rows of the file that are not deleted; all if None.

    Raises:
        ValueError: the file has no column of the time, whose rows then have no position in the stream, or has it twice;
            or the column has another type, or lies past the year 9999.
    """
    footer = read_columns(file)
    if event_time not in footer.names:
        raise ValueError(f"{location} has no column {event_time!r}.{suggestion(event_time, footer.names)}")
    footer.check_names(location, [event_time])
    check_time_type(location, event_time, file.schema_arrow.field(event_time).type, unit)
    groups: list[RowGroup] = []
    first_row = 0
    for index in range(file.num_row_groups):
        rows = file.metadata.row_group(index).num_rows
        mask_R = None if kept_R is None else kept_rows(kept_R, first_row, rows)
        if mask_R is not None and mask_R.all():
            mask_R = None  # statistics are right
        if rows and (mask_R is None or mask_R.any()):
            bounds = group_bounds(file, index, event_time, unit, mask_R)
            if bounds is not None and bounds[1] > YEAR_9999_US:
                raise ValueError(
                    f"{location}: column {event_time!r} with time_unit: {unit} lies past the year 9999; "
                    "does it count a smaller unit?"
                )
            groups.append(RowGroup(index, first_row, rows, bounds))
        first_row += rows
    return replace(footer, groups=tuple(groups))


class Footers:
    """Keeps the footers of the files of a stream, and reads those of new and changed files.

    Args:
        source: the name of the data source.
        url: the location of the files.
        event_time, unit: the column of the time, and what it counts.
        read: reads the footer of a file, by path and version.
    """

    def __init__(
        self, source: str, url: str, event_time: str, unit: TimeUnit, read: Callable[[str, str], Footer]
    ) -> None:
        self._read = read
        self._cache = _FooterCache(source, url, event_time, unit)
        self._footers: dict[tuple[str, str], Footer] | None = None

    def refresh(self, versions: Mapping[str, str]) -> Iterator[tuple[str, str, Footer]]:
        """Yields path, version and footer of every file, in the order of ``versions``.

        A footer is kept even if another file cannot be read yet, so that it is read once.

        Args:
            versions: the versions of all files, by path.
        """
        before = self._cache.read() if self._footers is None else self._footers
        # Forget removed and replaced files first, so that memory does not grow if a new file cannot be read yet.
        footers = {file: before[file] for file in versions.items() if file in before}
        self._footers = footers
        new = [file for file in versions.items() if file not in footers]

        def read(file: tuple[str, str]) -> None:
            footers[file] = self._read(*file)

        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            list(pool.map(read, new))
        if new:
            self._cache.write(footers)
        for path, version in versions.items():
            yield path, version, footers[path, version]


class _FooterCache:
    """Reads and writes footers by path and version of their files; a cache that cannot be read or written is none."""

    def __init__(self, source: str, url: str, event_time: str, unit: TimeUnit) -> None:
        location = url if "://" in url else str(Path(url).absolute())
        key = json.dumps([_FORMAT, source, location, event_time, unit])
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "exfm", source)
        self._path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"

    def read(self) -> dict[tuple[str, str], Footer]:
        """Reads the footers of the last job."""
        footers: dict[tuple[str, str], Footer] = {}
        try:
            entries = json.loads(self._path.read_bytes())
            for path, (version, names, field_ids, groups) in entries.items():
                read: list[RowGroup] = []
                for index, first_row, rows, bounds in groups:
                    read.append(RowGroup(index, first_row, rows, tuple(bounds) if bounds else None))
                footers[path, version] = Footer(tuple(names), tuple(field_ids), tuple(read))
        except (OSError, ValueError, TypeError, AttributeError):
            return {}
        return footers

    def write(self, footers: Mapping[tuple[str, str], Footer]) -> None:
        """Writes the footers, if they are many."""
        if len(footers) < LEAST_FILES:
            return
        entries = {}
        for (path, version), footer in footers.items():
            groups = [[group.index, group.first_row, group.rows, group.bounds] for group in footer.groups]
            entries[path] = [version, footer.names, footer.field_ids, groups]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first, so that no job reads half of it.
            with tempfile.NamedTemporaryFile("w", dir=self._path.parent, delete=False) as file:
                json.dump(entries, file)
            Path(file.name).replace(self._path)
