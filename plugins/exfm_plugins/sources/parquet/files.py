"""The files of a stream: where they are, and what their row groups hold."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

import exfm
from exfm.sources import YEAR_9999_US, TimeUnit, list_files
from exfm_plugins.sources.parquet.bounds import group_bounds
from exfm_plugins.sources.parquet.columns import check_somewhere, check_time
from exfm_plugins.sources.parquet.order import Group, StreamFile, in_order
from exfm_plugins.sources.parquet.partitions import path_columns

# Reading a footer is waiting, on a remote file system.
_FOOTERS_AT_ONCE = 16

PATIENCE_S = 60.0
"""How long a file may stay the same without a footer."""

# What file systems call the sign that a file is another one than before; the first of them that there is.
_TAGS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class _Examined:
    """What a footer says: the names of the columns, and the row groups that have rows."""

    names: tuple[str, ...]
    groups: tuple[Group, ...]


class ParquetFiles:
    """The Parquet files at a URL, in the order of their first event, and what is known of their row groups.

    A file's footer is examined once; what is kept of it is four numbers per row group.

    Args:
        url: a folder (its sub-folders included), a file, or a glob.
        columns: the columns that are read; a file may lack any but the time.
        event_time: the column of the time.
        unit: what an integer time counts.
    """

    def __init__(self, url: str, columns: Sequence[str], event_time: str, unit: TimeUnit) -> None:
        self.url = url
        self._columns = columns
        self._event_time = event_time
        self._unit = unit
        self._examined: dict[tuple[str, str], _Examined] = {}
        self._files: tuple[StreamFile, ...] | None = None
        self._of_path: dict[str, dict[str, pa.Scalar]] = {}
        self._damaged: dict[str, tuple[str, float]] = {}  # by path: a version that cannot be read, and since when

    def look(self) -> tuple[StreamFile, ...]:
        """The files that have rows, in order; those that have come or changed since the last look are examined.

        Raises:
            ValueError: there is no file, a file cannot be read or has no column of the time, no row of any has a time,
                or a column is in none of them.
        """
        versions = self._versions()
        self._examined = {file: one for file, one in self._examined.items() if file in versions.items()}
        new = [file for file in versions.items() if file not in self._examined]
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            list(pool.map(lambda file: self._examine(*file), new))
        self._examined = {file: self._examined[file] for file in versions.items()}
        self._of_path = path_columns(versions)
        names = {name for one in self._examined.values() for name in one.names}
        names |= {name for columns in self._of_path.values() for name in columns}
        check_somewhere(self.url, self._columns, names)
        found = [(path, version, one.groups) for (path, version), one in self._examined.items() if one.groups]
        if found and not any(group.bounds for _, _, groups in found for group in groups):
            raise ValueError(f"parquet: column {self._event_time!r} is empty in every file at {self.url!r}")
        self._files = in_order(found)
        return self._files

    def known(self) -> tuple[StreamFile, ...]:
        """The files as they were at the last look."""
        return self.look() if self._files is None else self._files

    def of_path(self, path: str) -> dict[str, pa.Scalar]:
        """The columns that stand in a file's path, as it was at the last look, of those that are read."""
        return {name: value for name, value in self._of_path[path].items() if name in self._columns}

    def open(self, path: str) -> pq.ParquetFile:
        """Opens one file."""
        filesystem, _ = fsspec.url_to_fs(self.url)
        return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)

    def _versions(self) -> dict[str, str]:
        """Size and tag of every file, by path."""
        filesystem, root = fsspec.url_to_fs(self.url)
        found = list_files(filesystem, root, ".parquet")
        if not found:
            wrong = (
                f"{self.url!r} holds no Parquet file"
                if filesystem.exists(root)
                else f"there is no file or folder {self.url!r}"
            )
            raise exfm.components.NotYetError(f"parquet: path: {wrong}")
        return {path: _version(info) for path, info in found.items()}

    def _examine(self, path: str, version: str) -> None:
        """Keeps what a footer says, so that it is read once even where another file cannot be read yet."""
        try:
            file = self.open(path)
        except FileNotFoundError as error:
            raise exfm.components.NotYetError(f"parquet: {path} was removed while the files were listed") from error
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # of the file system, not of the content
                raise
            raise self._unreadable(path, version, error) from error
        with file:
            check_time(path, file.schema_arrow, self._event_time, self._unit)
            examined = _Examined(tuple(file.schema_arrow.names), tuple(self._groups_of(path, file)))
        self._examined[path, version] = examined

    def _unreadable(self, path: str, version: str, error: Exception) -> ValueError:
        """A file without a footer may still be written; one that stays the same for long is taken for damaged."""
        now = time.monotonic()
        before, since = self._damaged.get(path, (version, now))
        self._damaged[path] = (version, since if version == before else now)
        text = f"parquet: {path} cannot be read as Parquet: {error}"
        if now - self._damaged[path][1] >= PATIENCE_S:
            return ValueError(f"{text}; it has not grown for {PATIENCE_S:g} seconds")
        return exfm.components.NotYetError(text)

    def _groups_of(self, path: str, file: pq.ParquetFile) -> Iterator[Group]:
        first_row = 0
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if rows:
                yield Group(index, first_row, self._bounds(path, file, index))
            first_row += rows

    def _bounds(self, path: str, file: pq.ParquetFile, index: int) -> tuple[int, int] | None:
        bounds = group_bounds(file, index, self._event_time, self._unit)
        if bounds is not None and bounds[1] > YEAR_9999_US:
            raise ValueError(
                f"parquet: {path}: column {self._event_time!r} with time_unit: {self._unit} lies past the year 9999; "
                "does it count a smaller unit?"
            )
        return bounds


def _version(info: Mapping[str, Any]) -> str:
    tag = next((info[name] for name in _TAGS if info.get(name) is not None), "")
    return f"{info['size']}-{tag}"
