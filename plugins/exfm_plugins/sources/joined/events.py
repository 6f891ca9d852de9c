"""Reads the events of a log by time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exfm.components import NotYetError, suggestion
from exfm.sources import RowGroup, StreamFile, TimeUnit, column_times
from exfm_plugins.sources.joined.plain import to_plain
from exfm_plugins.sources.parquet.files import ParquetFiles


@dataclass(frozen=True)
class LogEvents:
    """Events of a log: their times in microseconds, null where an event has none, and their columns by name."""

    time: pa.ChunkedArray
    columns: Mapping[str, pa.ChunkedArray]


class _Listing:
    """Finds the row groups and the files of a log by time.

    Legend: G row groups, F files.
    """

    def __init__(self, files: tuple[StreamFile, ...]) -> None:
        self.files = files
        self.groups = [(file, group) for file in files for group in file.groups]
        # A group without times may be of any time: its events are joined to nothing, and counted.
        ever = (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
        self._bounds_G2 = np.array([group.bounds or ever for _, group in self.groups], np.int64).reshape(-1, 2)
        self._bounds_F2 = np.array([(file.first_us, file.last_us) for file in files], np.int64).reshape(-1, 2)
        timed = [group.bounds for _, group in self.groups if group.bounds]
        self.bounds = (min(timed)[0], max(last_us for _, last_us in timed)) if timed else None

    def groups_between(self, first_us: int, last_us: int) -> list[tuple[StreamFile, RowGroup]]:
        """Lists the row groups that may have events between two times, both included."""
        return [self.groups[number] for number in _overlapping(self._bounds_G2, first_us, last_us)]

    def files_between(self, first_us: int, last_us: int) -> list[StreamFile]:
        """Lists the files that may have events between two times, both included."""
        return [self.files[number] for number in _overlapping(self._bounds_F2, first_us, last_us)]


def _overlapping(bounds_N2: NDArray[np.int64], first_us: int, last_us: int) -> NDArray[np.intp]:
    return np.flatnonzero((bounds_N2[:, 0] <= last_us) & (bounds_N2[:, 1] >= first_us))


class EventLog:
    """Reads columns of the events of a log, with their times in microseconds, from the row groups of a time.

    Args:
        location: key path of the log, with which messages begin.
        url: the files.
        time, unit: the column of the time, and what it counts.
        columns: the columns that are read, beside the time.

    Raises:
        ValueError: from every method: there is no file, a file is no Parquet, or a file lacks a column. An
            ``exfm.components.NotYetError`` if there are no files yet, or a file is still being written.
    """

    def __init__(self, location: str, url: str, time: str, unit: TimeUnit, columns: Sequence[str]) -> None:
        self._location = location
        self._time = time
        self._unit = unit
        self._columns = columns
        # Events have no ids: the time, which is in every file, stands for them.
        self._files = ParquetFiles(url, [*columns, time], time, time, unit)
        # Positions, because a column may have any name, that of the time included.
        self._names = [str(number) for number in range(len(columns) + 1)]
        self._listed: _Listing | None = None
        self.url = url

    def look(self) -> None:
        """Lists the files; reads use this list until the next look."""
        with self._located():
            self._files.look()

    def bounds(self) -> tuple[int, int] | None:
        """Returns the times of the oldest and of the newest event; None if there is no event."""
        return self._listing().bounds

    def version(self, first_us: int, last_us: int) -> str:
        """Returns a digest of the versions of the files that may have events between two times, both included."""
        digest = hashlib.sha256()
        for file in self._listing().files_between(first_us, last_us):
            digest.update(f"{file.path}\0{file.version}\0".encode())
        return digest.hexdigest()[:16]

    def read(self, first_us: int, last_us: int) -> LogEvents:
        """Reads the row groups that may have events between two times, both included."""
        listing = self._listing()
        with self._located():
            tables = [self._read_group(*group) for group in listing.groups_between(first_us, last_us)]
            if not tables and listing.groups:
                # Without events in the time, the types are those of any other row group.
                tables = [self._read_group(*listing.groups[0]).slice(0, 0)]
            if not tables:
                tables = [
                    pa.table([pa.array([], pa.int64()), *(pa.nulls(0) for _ in self._columns)], names=self._names)
                ]
            self._check_types(tables)
            events = pa.concat_tables(tables, promote_options="permissive")
        time, *columns = events.columns
        return LogEvents(time, dict(zip(self._columns, columns, strict=True)))

    def _check_types(self, tables: Sequence[pa.Table]) -> None:
        """Raises ValueError if files store a column in types that have no common type."""
        for number, column in enumerate(self._columns, 1):
            types = dict.fromkeys(str(table.column(number).type) for table in tables)
            different = [kind for kind in types if kind not in ("null", "int64", "double")]
            if len(different) > 1 or (different and len(types.keys() - {"null"}) > 1):
                raise ValueError(f"{self.url!r}: column {column!r} is {' in some files and '.join(types)} in others")

    def _listing(self) -> _Listing:
        """Returns the files as of the last look."""
        with self._located():
            files = self._files.last_seen()
        # Another tuple after each look.
        if self._listed is None or self._listed.files is not files:
            self._listed = _Listing(files)
        return self._listed

    def _read_group(self, file: StreamFile, group: RowGroup) -> pa.Table:
        with self._files.open(file.path) as opened:
            names = opened.schema_arrow.names
            stored = [column for column in self._columns if column in names]
            for column in self._columns:
                if column not in names and column not in file.columns:
                    raise ValueError(f"{file.path} has no column {column!r}.{suggestion(column, names)}")
            table = opened.read_row_group(group.index, columns=[*stored, self._time])
        time = table.column(self._time).combine_chunks()
        missing = time.is_null().to_numpy(zero_copy_only=False)
        columns = [pa.array(column_times(time, self._unit), mask=missing)]
        for column in self._columns:
            values = pa.repeat(file.columns[column], table.num_rows) if column not in stored else table.column(column)
            columns.append(to_plain(values, f"{file.path}: column {column!r}"))
        return pa.table(columns, names=self._names)

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Puts the key path of the log before the messages of errors."""
        try:
            yield
        except ValueError as error:
            # The type is kept, because a job that follows the stream waits after a NotYetError.
            kind = NotYetError if isinstance(error, NotYetError) else ValueError
            raise kind(f"joined: {self._location}: {error}") from error
