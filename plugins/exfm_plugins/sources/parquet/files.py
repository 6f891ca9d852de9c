"""Lists the files of a stream, and reads the times of their row groups."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

import exfm
from exfm.sources import (
    Footer,
    Footers,
    RowGroupFiles,
    StreamFile,
    TimeUnit,
    list_files,
    place_ids,
    read_footer,
)
from exfm_plugins.sources.parquet.columns import check_somewhere
from exfm_plugins.sources.parquet.partitions import path_columns

logger = logging.getLogger(__name__)

# Streams whose rows are numbered, so that each is named in a single warning.
_NUMBERED: set[str] = set()

PATIENCE_S = 60.0
"""Seconds after which an unchanged file without a footer counts as damaged."""

# Names that file systems use for a property that changes when a file is replaced; the first that exists is used.
_TAGS = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "updated", "created")


class ParquetFiles(RowGroupFiles):
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
        self._footers = Footers("parquet", url, event_time, unit, self._read_footer)
        # Version that cannot be read, and the monotonic time since when, by path.
        self._damaged: dict[str, tuple[str, float]] = {}

    def current_files(self) -> list[StreamFile]:
        """Lists the files that have rows, after reading the footers of new and changed files.

        Raises:
            ValueError: there is no file, a file cannot be read or has no column of the time, or a column is in
                none of the files.
        """
        versions = self._versions()
        columns = path_columns(versions)
        names: set[str] = set()
        files: list[StreamFile] = []
        for path, version, footer in self._footers.refresh(versions):
            names.update(footer.names, columns[path])
            footer.check_names(f"parquet: {path}", self._columns)
            if footer.groups:
                files.append(StreamFile(path, version, footer.groups, columns[path]))
        self._check_columns(names)
        return files

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

    def complete(self, batch: pa.RecordBatch, file: StreamFile, first_row: int) -> pa.RecordBatch:
        """Adds example ids where rows are numbered; the core reports other columns that a file lacks."""
        if self._numbered:
            batch = batch.append_column(
                self._example_id, place_ids(self._relative(file.path), first_row, batch.num_rows)
            )
        return batch

    def _relative(self, path: str) -> str:
        """Returns a file's path below the folder of the stream, which stays when the folder moves."""
        _, root = fsspec.url_to_fs(self.url)
        folder = root.rstrip("/") + "/"
        return path.removeprefix(folder) if path.startswith(folder) else path.rpartition("/")[2]

    def open(self, path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """Opens a file."""
        filesystem, _ = fsspec.url_to_fs(self.url)
        return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True, metadata=metadata)

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

    def _read_footer(self, path: str, version: str) -> Footer:
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
            return read_footer(f"parquet: {path}", file, self._event_time, self._unit)

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


def _version(info: Mapping[str, Any]) -> str:
    tag = next((info[name] for name in _TAGS if info.get(name) is not None), "")
    return f"{info['size']}-{tag}"
