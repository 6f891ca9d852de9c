"""Reads the committed rows of a window: from their files, or from the files into which a vacuum has merged them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from exfm.storage.hashing import FileRecord
from exfm.storage.merged_rows import find_merged
from exfm.storage.workspace import MissingFileError, Workspace
from exfm.supervision.row_files import POSITION


class StoredRows:
    """Reads the rows of an open Parquet file, or some of its row groups.

    Args:
        file: the file, which is closed with the rows.
        groups: the row groups; None for all.
    """

    def __init__(self, file: pa.NativeFile, groups: Sequence[int] | None = None) -> None:
        self._bytes = file
        self._file = pq.ParquetFile(file)
        self._groups = list(range(self._file.num_row_groups)) if groups is None else list(groups)

    @classmethod
    def open(cls, workspace: Workspace, record: FileRecord) -> Self:
        """Opens the rows of a committed file after checking them.

        Raises:
            RunError: they are missing, or their content is not the committed content.
        """
        try:
            return cls(workspace.open_checked(record))
        except MissingFileError:
            for merged, window in find_merged(workspace, record):
                try:
                    file = merged.open(workspace, (window,))
                except MissingFileError:
                    continue  # merged again meanwhile
                return cls(file, range(window.first_group, window.first_group + window.groups))
            raise

    @property
    def schema(self) -> pa.Schema:
        """Returns the columns."""
        return self._file.schema_arrow

    def batches(self, rows: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields the rows in batches of at most so many."""
        if self._groups:
            yield from self._file.iter_batches(rows, row_groups=self._groups, columns=list(columns))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads all rows, and closes the file."""
        names = None if columns is None else list(columns)
        try:
            return self._file.read_row_groups(self._groups, columns=names)
        finally:
            self.close()

    def close(self) -> None:
        """Closes the file."""
        self._bytes.close()


def read_rows(workspace: Workspace, record: FileRecord, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the rows of a committed file, or some of their columns, after checking them.

    Raises:
        RunError: they are missing, or their content is not the committed content.
    """
    return StoredRows.open(workspace, record).read(columns)


def read_window(workspace: Workspace, records: Sequence[FileRecord], columns: Sequence[str] | None = None) -> pa.Table:
    """Reads the rows of a window, or some of their columns, as a single table in the order of the stream.

    Args:
        records: the files of a commit, one of each process that wrote it; at least 1.

    Raises:
        RunError: a file is missing, or its content is not the committed content.
    """
    tables: list[pa.Table] = []
    for record in records:
        rows = StoredRows.open(workspace, record)
        is_sharded = POSITION in rows.schema.names
        tables.append(rows.read([*columns, POSITION] if columns is not None and is_sharded else columns))
    table = pa.concat_tables(tables)
    if POSITION not in table.column_names:
        return table
    # The runs of each file are sorted, which a stable sort uses.
    order = np.argsort(table.column(POSITION).to_numpy(), kind="stable")
    # Combined before the take, because pyarrow looks up each index chunk by chunk otherwise.
    return table.drop_columns(POSITION).combine_chunks().take(pa.array(order))
