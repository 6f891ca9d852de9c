"""Lists the data files of a snapshot of an Iceberg table, and completes their rows.

Legend: R rows of a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import exfm
from exfm.sources import (
    Footer,
    Footers,
    RowGroupFiles,
    StreamFile,
    TimeUnit,
    check_time_type,
    read_columns,
    read_footer,
)
from exfm_plugins.sources.iceberg.catalog import TableReference, first_line
from exfm_plugins.sources.iceberg.columns import (
    TableColumn,
    cast_column,
    missing_values,
    partition_values,
    stored_names,
    table_columns,
)


@dataclass(frozen=True)
class _Listing:
    """Holds a snapshot of the table: how to open its files, its columns, its name mapping, the partition of each file
    by field id, and the rows that are not deleted of files with deleted rows.
    """

    io: Any
    columns: Mapping[str, TableColumn]
    mapping: Any
    partitions: Mapping[str, Mapping[int, Any]]
    kept: Mapping[str, NDArray[np.bool_]]


class IcebergFiles(RowGroupFiles):
    """Lists the data files of a snapshot of a table.

    Args:
        table: the table and its snapshot.
        columns: the columns that are read.
        event_time, unit: the column of the time, and what it counts.
    """

    def __init__(self, table: TableReference, columns: Sequence[str], event_time: str, unit: TimeUnit) -> None:
        self._table = table
        self._columns = columns
        self._event_time = event_time
        self._unit = unit
        self._footers = Footers("iceberg", f"iceberg://{table.table}", event_time, unit, self._read_footer)
        self._listing: _Listing | None = None
        # Files of the last look, and the metadata file that they are of, which each change of the table writes anew.
        self._looked_up: tuple[str, list[StreamFile]] = ("", [])

    def current_files(self) -> list[StreamFile]:
        """Lists the files of the snapshot, after reading the footers of those that are new.

        Raises:
            ValueError: the snapshot cannot be read, or the table lacks a column. An ``exfm.components.NotYetError`` if
                there is no table yet, or a file was removed since.
        """
        table = self._table.load()
        if self._looked_up[0] == table.metadata_location:
            return self._looked_up[1]
        scan = self._table.scan(table)
        tasks = self._plan(scan)
        columns = table_columns(scan.projection(), self._columns, self._table.location)
        check_time_type(self._table.location, self._event_time, columns[self._event_time].kind, self._unit)
        partitions = {task.file.file_path: partition_values(task.file, table.specs()) for task in tasks}
        kept = self._kept_rows(table.io, tasks)
        self._listing = _Listing(table.io, columns, table.name_mapping(), partitions, kept)
        files = self._with_rows(self._versions(tasks))
        # Only now, because a look that fails is repeated.
        self._looked_up = table.metadata_location, files
        return files

    def open(self, path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """Opens a file of the snapshot."""
        assert self._listing is not None, "files are listed before they are opened"
        try:
            return pq.ParquetFile(self._listing.io.new_input(path).open(), pre_buffer=True, metadata=metadata)
        except FileNotFoundError as error:
            raise self._gone(path) from error

    def complete(self, batch: pa.RecordBatch, file: StreamFile, first_row: int) -> pa.RecordBatch:
        """Casts columns to the types of the table."""
        assert self._listing is not None, "files are listed before they are read"
        names = [name for name in self._columns if name in batch.schema.names]
        arrays: list[pa.Array] = []
        for name in names:
            column = batch.column(name)
            # The time is in microseconds already.
            if name != self._event_time:
                column = cast_column(column, self._listing.columns[name].kind)
            arrays.append(column)
        return pa.record_batch(arrays, names=names)

    def _plan(self, scan: Any) -> list[Any]:
        """Returns pyiceberg's tasks of a scan: each data file with its delete files."""
        try:
            tasks = list(scan.plan_files())
        except FileNotFoundError as error:
            raise self._gone("a manifest") from error
        except (ValueError, NotImplementedError) as error:
            hint = ""
            if "equality delete" in str(error):
                hint = ". Compact the table, so that its data files are written without the deleted rows"
            raise ValueError(f"{self._table.location} cannot be read: {first_line(error)}{hint}") from error
        for task in tasks:
            kind = task.file.file_format
            if kind != "PARQUET":
                raise ValueError(
                    f"{self._table.location} has a file of {getattr(kind, 'value', kind)}, {task.file.file_path}; exfm "
                    "reads Parquet files alone: set write.format.default=parquet, and compact the table"
                )
        return tasks

    def _kept_rows(self, io: Any, tasks: Sequence[Any]) -> dict[str, NDArray[np.bool_]]:
        """Returns masks of the rows that are not deleted, by path, of the files with deleted rows."""
        from pyiceberg.io import pyarrow as reader

        try:
            # pyiceberg's own function, because it knows all forms of delete files and vectors.
            positions = reader._read_all_delete_files(io, tasks)
        except FileNotFoundError as error:
            raise self._gone("a delete file") from error
        kept: dict[str, NDArray[np.bool_]] = {}
        for task in tasks:
            deleted: Iterable[pa.ChunkedArray] = positions.get(task.file.file_path, ())
            if deleted:
                mask_R = np.ones(task.file.record_count, bool)
                for rows in deleted:
                    mask_R[rows.to_numpy()] = False
                kept[task.file.file_path] = mask_R
        return kept

    def _versions(self, tasks: Sequence[Any]) -> dict[str, str]:
        """Returns the version of each file: a path is written once, but its deleted rows and its columns may change."""
        assert self._listing is not None
        # Another column may have the name of the time since.
        time_id = self._listing.columns[self._event_time].field_id
        versions: dict[str, str] = {}
        for task in tasks:
            path = task.file.file_path
            versions[path] = f"{task.file.file_size_in_bytes}-{time_id}"
            if path in self._listing.kept:
                digest = hashlib.sha256(np.packbits(self._listing.kept[path]).tobytes()).hexdigest()
                versions[path] += f"-{digest[:16]}"
        return versions

    def _with_rows(self, versions: Mapping[str, str]) -> list[StreamFile]:
        """Returns the files that have rows."""
        listing = self._listing
        assert listing is not None
        files: list[StreamFile] = []
        for path, version, footer in self._footers.refresh(versions):
            if footer.groups:
                stored = self._stored(path, footer)
                values = missing_values(listing.columns, stored, listing.partitions[path], f"iceberg: {path}")
                files.append(StreamFile(path, version, footer.groups, values, listing.kept.get(path), stored))
        return files

    def _stored(self, path: str, footer: Footer) -> dict[str, str]:
        """Returns the names that a file has for the columns."""
        assert self._listing is not None
        try:
            return stored_names(footer, self._listing.columns, self._listing.mapping)
        except ValueError as error:
            raise ValueError(f"iceberg: {path}: {error}") from error

    def _read_footer(self, path: str, version: str) -> Footer:
        assert self._listing is not None
        with self.open(path) as file:
            stored = self._stored(path, read_columns(file))
            if self._event_time not in stored:
                raise ValueError(
                    f"iceberg: {path} has no times: the column {self._event_time!r} was added to the table later"
                )
            kept_R = self._listing.kept.get(path)
            return read_footer(f"iceberg: {path}", file, stored[self._event_time], self._unit, kept_R)

    def _gone(self, file: str) -> ValueError:
        text = f"iceberg: {file} is gone, which the snapshot needs; was it expired?"
        if self._table.is_newest:
            # The next look is at a newer snapshot, which may do without it.
            return exfm.components.NotYetError(text)
        return ValueError(text)
