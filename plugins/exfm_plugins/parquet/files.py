"""The files of a stream: where they are, and what their row groups hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from exfm.sources import YEAR_9999_US, TimeUnit
from exfm_plugins.parquet.bounds import group_bounds
from exfm_plugins.parquet.columns import check_somewhere, check_time

# Reading a footer is waiting, on a remote file system.
_FOOTERS_AT_ONCE = 16


@dataclass(frozen=True)
class RowGroup:
    """One row group: its first row in the file, and its first and last time in microseconds."""

    index: int
    first_row: int
    first_us: int
    last_us: int


class ParquetFiles:
    """The Parquet files at a URL, in name order, and what is known of their row groups.

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
        self._examined: dict[tuple[str, int], tuple[RowGroup, ...]] = {}
        self._names: set[str] = set()

    def row_groups(self) -> dict[str, tuple[RowGroup, ...]]:
        """The row groups of every file, both in order; files that have come since the last call are included.

        Raises:
            ValueError: there is no file, a file cannot be read or has no time, or a column is in none of them.
        """
        sizes = self._sizes()
        new = [file for file in sizes.items() if file not in self._examined]
        with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as pool:
            footers = list(pool.map(self._examine, [path for path, _ in new]))
        self._names.update(*(names for names, _ in footers))
        check_somewhere(self.url, self._columns, self._names)
        examined = self._examined | {file: groups for file, (_, groups) in zip(new, footers, strict=True)}
        self._examined = {file: examined[file] for file in sizes.items()}
        return {path: groups for (path, _), groups in self._examined.items()}

    def open(self, path: str) -> pq.ParquetFile:
        """Opens one file."""
        filesystem, _ = fsspec.url_to_fs(self.url)
        try:
            return pq.ParquetFile(path, filesystem=filesystem, pre_buffer=True)
        except pa.ArrowInvalid as error:
            raise ValueError(f"parquet: {path} cannot be read as Parquet: {error}") from error

    def _sizes(self) -> dict[str, int]:
        """Size of every file, by path, in name order."""
        filesystem, root = fsspec.url_to_fs(self.url)
        filesystem.invalidate_cache()
        if any(character in root for character in "*?["):
            found = filesystem.glob(root, detail=True)
        elif filesystem.isdir(root):
            found = filesystem.find(root, detail=True)
            found = {path: info for path, info in found.items() if _is_data(path.removeprefix(root))}
        elif filesystem.exists(root):
            found = {root: filesystem.info(root)}
        else:
            raise ValueError(f"parquet: path: there is no file or folder {self.url!r}")
        sizes = {path: int(info["size"]) for path, info in sorted(found.items()) if info["type"] == "file"}
        if not sizes:
            raise ValueError(f"parquet: path: {self.url!r} holds no Parquet file")
        return sizes

    def _examine(self, path: str) -> tuple[list[str], tuple[RowGroup, ...]]:
        """Names of a file's columns, and its row groups."""
        with self.open(path) as file:
            check_time(path, file.schema_arrow, self._event_time, self._unit)
            return file.schema_arrow.names, tuple(self._groups_of(path, file))

    def _groups_of(self, path: str, file: pq.ParquetFile) -> Iterator[RowGroup]:
        first_row = 0
        for index in range(file.num_row_groups):
            rows = file.metadata.row_group(index).num_rows
            if rows:
                yield RowGroup(index, first_row, *self._bounds(path, file, index, first_row))
            first_row += rows

    def _bounds(self, path: str, file: pq.ParquetFile, index: int, first_row: int) -> tuple[int, int]:
        bounds = group_bounds(file, index, self._event_time, self._unit)
        if bounds is None:
            raise ValueError(f"parquet: {path}: column {self._event_time!r} is empty from row {first_row} on")
        if bounds[1] > YEAR_9999_US:
            raise ValueError(
                f"parquet: {path}: column {self._event_time!r} with time_unit: {self._unit} lies past the year 9999; "
                "does it count a smaller unit?"
            )
        return bounds


def _is_data(within: str) -> bool:
    """Leaves out what writers put next to the data: _SUCCESS, _temporary/, .part.crc."""
    parts = PurePosixPath(within.lstrip("/")).parts
    return within.endswith(".parquet") and not any(part.startswith(("_", ".")) for part in parts)
