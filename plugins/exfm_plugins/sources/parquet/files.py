"""Lists the files of a stream, and reads the times of their row groups."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

import exfm
from exfm.sources import YEAR_9999_US, TimeUnit, list_files, place_ids
from exfm_plugins.sources.parquet.bounds import group_bounds
from exfm_plugins.sources.parquet.columns import check_somewhere, check_time
from exfm_plugins.sources.parquet.footers import Footer, FooterCache
from exfm_plugins.sources.parquet.order import Group, StreamFile, in_order
from exfm_plugins.sources.parquet.partitions import path_columns

logger = logging.getLogger(__name__)

# Streams whose rows are numbered, so that each is named in a single warning.
_NUMBERED: set[str] = set()

# Reading footers of a remote file system mostly waits, so threads help although there is a GIL.
_FOOTERS_AT_ONCE = 16

PATIENCE_S = 60.0
"""Seconds after which an unchanged file without a footer counts as damaged."""

# Names that file systems use for a property that changes when a file is replaced; the first that exists is used.
_TAGS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created")


class ParquetFiles:
    """Lists the Parquet files at a URL in the order of their first event, with their row groups.

    A file's footer is read once, and four numbers per row group are kept in memory.

    Args:
        url: a folder (with its sub-folders), a file, or a glob.
        columns: the columns that are read; a file may lack any of them except the time.
        example_id: the column of example ids; if it is in no file, rows are numbered.
        event_time: the column of the time.
        unit: the unit of integer times.
    """

    def __init__(self, url: str, columns: Sequence[str], example_id: str, event_time: str, unit: TimeUnit) -> None:
        self.url = url
        self._columns = columns
        self._example_id = example_id
        self._numbered = False
        self._event_time = event_time
        self._unit = unit
        self._cache = FooterCache(url, event_time, unit)
        self._is_first = True
        self._examined: dict[tuple[str, str], Footer] = {}
        self._files: tuple[StreamFile, ...] | None = None
        self._path_columns: dict[str, dict[str, pa.Scalar]] = {}
        # Version that cannot be read, and the monotonic time since when, by path.
        self._damaged: dict[str, tuple[str, float]] = {}

    def look(self) -> tuple[StreamFile, ...]:
        """Lists the files that have rows, in order, after reading the footers of new and changed files.

        Raises:
            ValueError: there is no file, a file cannot be read or has no column of the time, no row has a time, or a
                column is in none of the files.
        """
        versions = self._versions()
        if self._is_first:
            self._is_first, self._examined = False, self._cache.read()
        # Forget removed and replaced files first, so that memory does not grow if a new file cannot be read yet.
        self._examined = {file: self._examined[file] for file in versions.items() if file in self._examined}
        new = [file for file in versions.items() if file not in self._examined]
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            list(pool.map(lambda file: self._examine(*file), new))
        # Threads have added files in any order: restore the order of the listing.
        self._examined = {file: self._examined[file] for file in versions.items()}
        if new:
            self._cache.write(self._examined)
        self._path_columns = path_columns(versions)
        names: set[str] = set()
        for examined in self._examined.values():
            names.update(examined.names)
        for columns in self._path_columns.values():
            names.update(columns)
        self._check_columns(names)
        filled: list[tuple[str, str, tuple[Group, ...]]] = []
        groups: list[Group] = []
        for (path, version), examined in self._examined.items():
            if examined.groups:
                filled.append((path, version, examined.groups))
                groups += examined.groups
        if groups and not any(group.bounds for group in groups):
            raise ValueError(f"parquet: column {self._event_time!r} is empty in every file at {self.url!r}")
        self._files = in_order(filled)
        return self._files

    def last_seen(self) -> tuple[StreamFile, ...]:
        """Returns the files as of the last look."""
        return self.look() if self._files is None else self._files

    def _check_columns(self, names: set[str]) -> None:
        """Checks that each column is in some file, and decides whether rows are numbered."""
        is_numbered = self._example_id not in names and not get_close_matches(self._example_id, names, n=1)
        check_somewhere(self.url, [c for c in self._columns if not is_numbered or c != self._example_id], names)
        if is_numbered and self.url not in _NUMBERED:
            _NUMBERED.add(self.url)
            logger.warning(
                "parquet: no file at %r has a column %r: an example is known by its file and row. Files must keep "
                "their names and rows, and predictions from elsewhere cannot name examples",
                *(self.url, self._example_id),
            )
        self._numbered = is_numbered

    def with_columns(self, batch: pa.RecordBatch, path: str, first_row: int) -> pa.RecordBatch:
        """Adds the columns in a file's path, and example ids where rows are numbered.

        Args:
            batch: consecutive rows.
            first_row: the index of its first row in the file.
        """
        for name, value in self._path_columns[path].items():
            if name in self._columns and name not in batch.schema.names:  # a column in the file has precedence
                batch = batch.append_column(name, pa.repeat(value, batch.num_rows))
        if self._numbered:
            batch = batch.append_column(self._example_id, place_ids(self._relative(path), first_row, batch.num_rows))
        return batch

    def _relative(self, path: str) -> str:
        """Returns a file's path below the folder of the stream, which stays when the folder moves."""
        _, root = fsspec.url_to_fs(self.url)
        folder = root.rstrip("/") + "/"
        return path.removeprefix(folder) if path.startswith(folder) else path.rpartition("/")[2]

    def open(self, path: str) -> pq.ParquetFile:
        """Opens a file."""
        filesystem, _ = fsspec.url_to_fs(self.url)
        return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)

    def _versions(self) -> dict[str, str]:
        """Returns size and tag of every file, by path."""
        filesystem, root = fsspec.url_to_fs(self.url)
        files = list_files(filesystem, root, ".parquet")
        if not files:
            problem = f"there is no file or folder {self.url!r}"
            if filesystem.exists(root):
                problem = f"{self.url!r} holds no Parquet file"
            raise exfm.components.NotYetError(f"parquet: path: {problem}")
        return {path: _version(info) for path, info in files.items()}

    def _examine(self, path: str, version: str) -> None:
        """Reads a footer, and stores its content even if another file cannot be read yet, so that it is read once."""
        try:
            file = self.open(path)
        except FileNotFoundError as error:
            raise exfm.components.NotYetError(f"parquet: {path} was removed while the files were listed") from error
        except (pa.ArrowInvalid, OSError) as error:
            # With a number it is an error of the file system, and not of the content.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise self._unreadable(path, version, error) from error
        with file:
            check_time(path, file.schema_arrow, self._event_time, self._unit)
            examined = Footer(tuple(file.schema_arrow.names), tuple(self._read_groups(path, file)))
        self._examined[path, version] = examined

    def _unreadable(self, path: str, version: str, error: Exception) -> ValueError:
        """Returns the error for a file without a footer, which is damaged if it stays unchanged for ``PATIENCE_S``.

        Until then it may still be being written, because a footer is written last.
        """
        now = time.monotonic()
        before, since = self._damaged.get(path, (version, now))
        if version != before:
            since = now
        self._damaged[path] = (version, since)
        text = f"parquet: {path} cannot be read as Parquet: {error}"
        if now - since >= PATIENCE_S:
            return ValueError(f"{text}; it has not grown for {PATIENCE_S:g} seconds")
        return exfm.components.NotYetError(text)

    def _read_groups(self, path: str, file: pq.ParquetFile) -> Iterator[Group]:
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
