"""Merges the small row files of a model's past windows into larger files, beside running jobs.

The order of steps is such that no reader misses a row: a merged file is written and read back; a record says what it
holds, from when on readers find it; readers get time to open the files that they have chosen; the small files go.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from exfm.errors import RunError
from exfm.storage.hashing import FileRecord
from exfm.storage.marks import Rows
from exfm.storage.merged_rows import (
    MERGED_NAME,
    MergedFile,
    MergedWindow,
    read_records,
    write_record,
)
from exfm.storage.workspace import ByteRange, Workspace, range_digest
from exfm.supervision.row_files import GROUP_ROWS, parquet_options
from exfm.supervision.stored_rows import StoredRows, read_rows

SMALL = 8 << 20
"""Bytes from which on a file is large enough: an object store reads it about as fast as a part of a larger file."""

LARGE = 64 << 20
"""Bytes up to which files are merged: a window is read from a merged file in a few requests."""

MANY = 8
"""Number of small files, one after another, that are worth a merge: each merge writes all of them again."""

NEWEST = 8
"""Number of a model's newest windows that are left alone: late rows, or a trainer that resumes, may write them again.
A trainer goes on from a snapshot, of which no more than eight are kept without being asked for."""


_MAGIC = b"PAR1"
"""Begins a Parquet file."""

_INTEGERS = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


@dataclass(frozen=True)
class CommittedRows:
    """Names a committed row file of a window."""

    window: int
    record: FileRecord


@dataclass(frozen=True)
class Merge:
    """Lists committed rows to merge into a file.

    Attributes:
        rows: the committed files, in order of windows, wherever their rows are.
        files: number of files that hold them now.
    """

    folder: Rows
    model: str
    rows: tuple[CommittedRows, ...]
    files: int


@dataclass
class MergeState:
    """Describes the files of a model's rows in a folder.

    Attributes:
        first: index of the first window whose rows stay.
        merges: the merges that are worth it.
        replaced: files whose rows are in merged files, and merged files of which nothing is asked for any more.
        records: records of such merged files; each goes after its file.
        relied_on: merged files that hold the rows of files in ``replaced``, with those rows.
        orphans: merged files without a record.
    """

    first: int
    merges: list[Merge] = field(default_factory=list)
    replaced: list[FileRecord] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    relied_on: list[tuple[MergedFile, tuple[MergedWindow, ...]]] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Tells whether nothing can be merged or removed."""
        return not (self.merges or self.replaced or self.records or self.orphans)

    def common(self, before: MergeState) -> MergeState:
        """Returns the state with the files alone that could be removed before too."""
        return MergeState(
            self.first,
            replaced=[record for record in self.replaced if record in before.replaced],
            records=[path for path in self.records if path in before.records],
            relied_on=self.relied_on,
            orphans=[path for path in self.orphans if path in before.orphans],
        )

    def remove(self, workspace: Workspace) -> None:
        """Removes the files that merged files have replaced, after checking those.

        Raises:
            RunError: a merged file is missing or corrupt; nothing is removed.
        """
        if self.replaced:
            for merged, windows in self.relied_on:
                merged.check(workspace, windows)
        for path in (*(record.path for record in self.replaced), *self.orphans, *self.records):
            workspace.remove_file(path)


@dataclass(frozen=True)
class _Item:
    """Holds the wanted rows of a stored file.

    Attributes:
        has_stale: whether the file also holds rows that no manifest names, or that are in another file too.
    """

    rows: tuple[CommittedRows, ...]
    bytes: int
    has_stale: bool = False


def find_merges(
    workspace: Workspace, folder: Rows, model: str, committed: Sequence[CommittedRows], first: int, head: int
) -> MergeState:
    """Finds the files of a model to merge, and those that merged files have replaced.

    Args:
        committed: the row files that manifests name, in order of windows, also those that are gone.
        first: index of the first window whose rows stay; those before it are not merged any more.
        head: index of the newest committed window.
    """
    state, items = MergeState(first), list[_Item]()
    stored = set(workspace.names(f"{folder}/{model}"))
    named = {rows.record: rows for rows in committed}
    merged_files = read_records(workspace, folder, model)
    state.orphans = _orphans(f"{folder}/{model}", stored, merged_files)
    placed: set[FileRecord] = set()
    for merged in sorted(merged_files, key=lambda file: _order(file, named)):
        rows: list[CommittedRows] = []
        held: list[MergedWindow] = []
        has_stale = False
        for window in merged.windows:
            if window.rows not in named or window.rows in placed:
                has_stale = True
            elif window.window >= first:
                rows.append(named[window.rows])
                held.append(window)
        if merged.file.path.rpartition("/")[2] not in stored:
            state.records.append(merged.record_path)
        elif rows:
            placed.update(entry.record for entry in rows)
            items.append(_Item(tuple(rows), merged.file.bytes, has_stale))
            state.relied_on.append((merged, tuple(held)))
        else:
            state.replaced.append(merged.file)
            state.records.append(merged.record_path)
    for entry in committed:
        if entry.record.path.rpartition("/")[2] not in stored:
            continue
        if entry.record in placed:
            state.replaced.append(entry.record)
        elif entry.window >= first:
            items.append(_Item((entry,), entry.record.bytes))
    past = [item for item in items if item.rows[-1].window <= head - NEWEST]
    state.merges += _merges(folder, model, sorted(past, key=lambda item: item.rows[0].window))
    return state


def _order(merged: MergedFile, named: Container[FileRecord]) -> tuple[int, int, str]:
    """Sorts merged files so that of those with the same rows the newest comes first: it is larger, or has no stale."""
    stale = sum(window.rows not in named for window in merged.windows)
    return stale, -len(merged.windows), merged.file.path


def _orphans(parent: str, stored: set[str], merged_files: Sequence[MergedFile]) -> list[str]:
    """Lists the merged files without a record, left by a vacuum that was killed."""
    recorded = {merged.file.path for merged in merged_files}
    paths = (f"{parent}/{name}" for name in sorted(stored) if MERGED_NAME.fullmatch(name))
    return [path for path in paths if path not in recorded]


def _merges(folder: Rows, model: str, items: Sequence[_Item]) -> Iterator[Merge]:
    """Groups neighbouring small files, and files with stale rows, into merges."""
    group: list[_Item] = []
    for item in (*items, None):
        size = sum(member.bytes for member in group)
        is_large = item is not None and item.bytes >= SMALL and not item.has_stale
        if group and (item is None or is_large or size + item.bytes > LARGE):
            if len(group) >= MANY or any(member.has_stale for member in group):
                rows = tuple(entry for member in group for entry in member.rows)
                yield Merge(folder, model, rows, len(group))
            group = []
        if item is not None and not is_large:
            group.append(item)


def apply_merge(workspace: Workspace, merge: Merge) -> None:
    """Writes merged files with the rows of a merge, one for each schema, reads them back and records them.

    Raises:
        RunError: a file of the rows is missing or corrupt, or a merged file reads otherwise.
    """
    rows = list(merge.rows)
    while rows:
        schema = _schema(workspace, rows[0])
        count = 1
        while count < len(rows) and _schema(workspace, rows[count]).equals(schema, check_metadata=True):
            count += 1
        _merge(workspace, f"{merge.folder}/{merge.model}", schema, rows[:count])
        rows = rows[count:]


def _schema(workspace: Workspace, entry: CommittedRows) -> pa.Schema:
    rows = StoredRows.open(workspace, entry.record)
    try:
        return rows.schema
    finally:
        rows.close()


def _merge(workspace: Workspace, parent: str, schema: pa.Schema, rows: Sequence[CommittedRows]) -> None:
    """Writes a merged file, checks it and records it."""
    path = f"{parent}/merged-{rows[0].window:06d}-{rows[-1].window:06d}-{{digest}}.parquet"
    with workspace.writing(path) as file, pq.ParquetWriter(file, schema, **parquet_options(schema)) as writer:
        for entry in rows:
            table = read_rows(workspace, entry.record)
            if table.num_rows:
                writer.write_table(table, row_group_size=GROUP_ROWS)
    write_record(workspace, _describe(workspace, file.record(), rows))


def _describe(workspace: Workspace, record: FileRecord, rows: Sequence[CommittedRows]) -> MergedFile:
    """Finds the committed files' rows in a merged file, by reading it back.

    Raises:
        RunError: the rows are others than those of a committed file.
    """
    windows: list[MergedWindow] = []
    with workspace.open_checked(record) as file:
        merged = pq.ParquetFile(file)
        group, start = 0, len(_MAGIC)
        for entry in rows:
            table = read_rows(workspace, entry.record)
            count = -(-table.num_rows // GROUP_ROWS)
            groups = list(range(group, group + count))
            if _bits(table) != _bits(merged.read_row_groups(groups)):
                raise RunError(
                    f"{workspace.name(record.path)}: it holds other rows than {entry.record.path}; remove it"
                )
            end = _end(merged.metadata, groups[-1]) if groups else start
            content = ByteRange(start, end, range_digest(file, start, end))
            windows.append(MergedWindow(entry.window, entry.record, group, count, content))
            group, start = group + count, end
        footer = ByteRange(start, record.bytes, range_digest(file, start, record.bytes))
    return MergedFile(record, footer, tuple(windows))


def _end(metadata: pq.FileMetaData, group: int) -> int:
    """Returns the position in a file of the end of a row group, whose columns follow each other."""
    end = 0
    for number in range(metadata.num_columns):
        column = metadata.row_group(group).column(number)
        start = column.data_page_offset
        if column.dictionary_page_offset:
            start = min(start, column.dictionary_page_offset)
        end = max(end, start + column.total_compressed_size)
    return int(end)


def _bits(table: pa.Table) -> list[tuple[str, pa.DataType, pa.Array, pa.Array]]:
    """Returns the columns of a table so that equal bits compare as equal: numbers that are NaN do not."""
    columns: list[tuple[str, pa.DataType, pa.Array, pa.Array]] = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        values = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
        numbers = values.flatten() if pa.types.is_fixed_size_list(values.type) else values
        if pa.types.is_floating(numbers.type):
            numbers = numbers.view(_INTEGERS[numbers.type.bit_width])
        columns.append((name, values.type, values.is_valid(), numbers))
    return columns
