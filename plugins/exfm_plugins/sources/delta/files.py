"""Lists the data files of a version of a Delta table, and completes their rows.

Legend: R rows of a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from numpy.typing import NDArray

import exfm
from exfm.components import suggestion
from exfm.sources import Footer, Footers, RowGroupFiles, StreamFile, TimeUnit, check_time_type, read_footer
from exfm_plugins.sources.delta.table import open_filesystem, open_table


@dataclass(frozen=True)
class _Listing:
    """Holds a version of the table: its columns, how to open its files, and its deleted rows by relative path."""

    schema: pa.Schema
    filesystem: pa_fs.FileSystem
    kept: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


class DeltaFiles(RowGroupFiles):
    """Lists the data files of a version of a table.

    Args:
        path: the table's folder or URL.
        columns: the columns that are read.
        event_time, unit: the column of the time, and what it counts.
        version, timestamp: choose the version; the newest if both are None.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[str],
        event_time: str,
        unit: TimeUnit,
        version: int | None = None,
        timestamp: datetime | None = None,
    ) -> None:
        self._path = path
        self._root = path.rstrip("/") + "/"
        self._columns = columns
        self._event_time = event_time
        self._unit = unit
        self._version = version
        self._timestamp = timestamp
        self._footers = Footers("delta", path, event_time, unit, self._read_footer)
        self._listing: _Listing | None = None

    def current_files(self) -> list[StreamFile]:
        """Lists the files of the version, after reading the footers of those that are new.

        Raises:
            ValueError: the version cannot be read, or the table lacks a column. An ``exfm.components.NotYetError`` if
                there is no table yet, or a file was removed since.
        """
        table = open_table(self._path, self._version, self._timestamp)
        schema = pa.schema(table.schema())
        self._check_columns(schema, table.metadata().partition_columns)
        actions = pa.table(table.get_add_actions())
        kept = _kept_rows(table)
        self._listing = _Listing(schema, open_filesystem(table), kept)
        versions: dict[str, str] = {}
        values: dict[str, dict[str, pa.Scalar]] = {}
        for path, version, columns in _added(actions):
            if path in kept:
                # The same file has another version where other rows are deleted.
                version += f"-{hashlib.sha256(np.packbits(kept[path]).tobytes()).hexdigest()[:16]}"
            versions[path], values[path] = version, columns
        self._check_paths(versions, kept)
        files: list[StreamFile] = []
        for path, version, footer in self._footers.refresh(versions):
            footer.check_names(f"delta: {self._root}{path}", self._columns)
            if footer.groups:
                files.append(StreamFile(self._root + path, version, footer.groups, values[path], kept.get(path)))
        return files

    def open(self, path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """Opens a file of the version."""
        assert self._listing is not None, "files are listed before they are opened"
        try:
            relative = path.removeprefix(self._root)
            return pq.ParquetFile(relative, filesystem=self._listing.filesystem, pre_buffer=True, metadata=metadata)
        except FileNotFoundError as error:
            text = f"delta: {path} is gone, which the version needs; was the table vacuumed?"
            if self._version is None and self._timestamp is None:
                # The next look is at a newer version, which may do without it.
                raise exfm.components.NotYetError(text) from error
            raise ValueError(text) from error

    def complete(self, batch: pa.RecordBatch, file: StreamFile, first_row: int) -> pa.RecordBatch:
        """Casts columns to the types of the table, and adds nulls for columns that were added after the file."""
        assert self._listing is not None, "files are listed before they are read"
        arrays: list[pa.Array] = []
        for name in self._columns:
            if name == self._event_time:
                arrays.append(batch.column(name))
                continue
            kind = self._listing.schema.field(name).type
            if name in batch.schema.names:
                arrays.append(batch.column(name).cast(kind))
            else:
                arrays.append(pa.nulls(batch.num_rows, kind))
        return pa.record_batch(arrays, names=list(self._columns))

    def _check_columns(self, schema: pa.Schema, partition_columns: Sequence[str]) -> None:
        for column in self._columns:
            if column not in schema.names:
                hint = suggestion(column, schema.names)
                raise ValueError(f"delta: the table at {self._path!r} has no column {column!r}.{hint}")
        location = f"delta: the table at {self._path!r}"
        check_time_type(location, self._event_time, schema.field(self._event_time).type, self._unit)
        if self._event_time in partition_columns:
            raise ValueError(f"{location}: {self._event_time!r}, the time of a row, must not be a partition column")

    def _check_paths(self, versions: Mapping[str, str], kept: Mapping[str, NDArray[np.bool_]]) -> None:
        """Checks that files are below the table's folder, and that the deleted rows are rows of these files."""
        for path in versions:
            if path.startswith("/") or "://" in path:
                raise ValueError(f"delta: the table at {self._path!r} has a file elsewhere, {path}; copy the table")
        strange = sorted(kept.keys() - versions.keys())
        if strange:
            raise ValueError(f"delta: the table at {self._path!r} deletes rows of {strange[0]}, which is no file of it")

    def _read_footer(self, path: str, version: str) -> Footer:
        assert self._listing is not None
        with self.open(path) as file:
            kept_R = self._listing.kept.get(path)
            return read_footer(f"delta: {self._root}{path}", file, self._event_time, self._unit, kept_R)


def _added(actions: pa.Table) -> list[tuple[str, str, dict[str, pa.Scalar]]]:
    """Returns relative path, version and partition values of each file."""
    partitions = actions.column("partition").combine_chunks() if "partition" in actions.column_names else None
    files: list[tuple[str, str, dict[str, pa.Scalar]]] = []
    columns = (actions.column(name).to_pylist() for name in ("path", "size_bytes", "modification_time"))
    for row, (path, size, changed) in enumerate(zip(*columns, strict=True)):
        values: dict[str, pa.Scalar] = {}
        if partitions is not None:
            values = {name: partitions.field(name)[row] for name in partitions.type.names}
        files.append((unquote(path), f"{size}-{changed}", values))
    return files


def _kept_rows(table: Any) -> dict[str, NDArray[np.bool_]]:
    """Returns masks of the rows that are not deleted, by relative path, of the files with deletion vectors."""
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return {}
    root = table.table_uri.rstrip("/") + "/"
    kept: dict[str, NDArray[np.bool_]] = {}
    for batch in table.deletion_vectors():
        for file in pa.record_batch(batch).to_pylist():
            kept[unquote(file["filepath"].removeprefix(root))] = np.array(file["selection_vector"], bool)
    return kept
