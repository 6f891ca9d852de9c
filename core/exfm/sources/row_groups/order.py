"""Finds the row groups of a window, and an order to read them in.

Legend: G row groups, R rows of a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class RowGroup:
    """Describes a row group.

    Attributes:
        index: its number in the file.
        first_row: the index in the file of its first row.
        rows: the number of its rows, those that are deleted included.
        bounds: its first and last time in microseconds; None without any time.
    """

    index: int
    first_row: int
    rows: int
    bounds: tuple[int, int] | None


@dataclass(frozen=True)
class StreamFile:
    """Describes a file with rows.

    Attributes:
        path: the name that the rows' ``Origin`` gives.
        version: differs whenever the rows of the file may differ.
        groups: its row groups with rows, at least one.
        columns: values, by column, that all rows have where the file has no such column, such as those in its path.
        kept_R: which rows belong to the stream, and not those that are deleted; None if all do.
        names: the name in the file of each of the stream's columns that it has; None if names are the same.
        first_us, last_us: its first and last time in microseconds, as ``order_files`` has set them.
    """

    path: str
    version: str
    groups: tuple[RowGroup, ...]
    columns: Mapping[str, pa.Scalar] = field(default_factory=dict, compare=False)
    kept_R: NDArray[np.bool_] | None = field(default=None, compare=False)
    names: Mapping[str, str] | None = field(default=None, compare=False)
    first_us: int = 0
    last_us: int = 0

    def stored_names(self, columns: Iterable[str]) -> dict[str, str]:
        """Returns the columns by their names in the file, without those that it is known to lack."""
        if self.names is None:
            return {column: column for column in columns}
        return {self.names[column]: column for column in columns if column in self.names}


@dataclass(frozen=True)
class PlacedGroup:
    """Describes a row group with its file, and the times of its first and its last event."""

    file: StreamFile
    index: int
    first_row: int
    rows: int
    first_us: int
    last_us: int


def kept_rows(kept_R: NDArray[np.bool_], first_row: int, rows: int) -> NDArray[np.bool_]:
    """Returns the mask of consecutive rows; rows beyond the end of the file's mask are kept."""
    mask_R = np.ones(rows, bool)
    stored_R = kept_R[first_row : first_row + rows]
    mask_R[: stored_R.size] = stored_R
    return mask_R


def order_files(files: Iterable[StreamFile]) -> tuple[StreamFile, ...]:
    """Sets the first and last time of files, and sorts them by the time of their first event, then by name.

    A file without times comes first, where its rows belong to the first window.
    """
    timed = [(file, _join_bounds(file.groups)) for file in files]
    start_us = min((bounds[0] for _, bounds in timed if bounds), default=0)
    ordered = []
    for file, bounds in timed:
        first_us, last_us = bounds or (start_us, start_us)
        ordered.append(replace(file, first_us=first_us, last_us=last_us))
    return tuple(sorted(ordered, key=lambda file: (file.first_us, file.path)))


def _join_bounds(groups: Sequence[RowGroup]) -> tuple[int, int] | None:
    bounds = [group.bounds for group in groups if group.bounds]
    if not bounds:
        return None
    return min(first for first, _ in bounds), max(last for _, last in bounds)


class GroupIndex:
    """Finds row groups by time.

    Args:
        files: the files of the stream, in order.
    """

    def __init__(self, files: Sequence[StreamFile]) -> None:
        placed = (group for file in files for group in _placed(file))
        self._groups = sorted(placed, key=lambda group: (group.first_us, group.file.path, group.index))
        self._first_G = np.array([group.first_us for group in self._groups], np.int64)
        self._last_G = np.array([group.last_us for group in self._groups], np.int64)
        # Never decreases, so that groups that end before a window can be passed over by bisection.
        self._reached_G = np.maximum.accumulate(self._last_G) if self._groups else self._last_G

    def overlapping(self, start_us: int, end_us: int) -> list[PlacedGroup]:
        """Lists the groups that may have events in ``start_us <= time < end_us``, in the order of their first event."""
        first = int(np.searchsorted(self._reached_G, start_us))
        end = int(np.searchsorted(self._first_G, end_us))
        numbers = first + np.flatnonzero(self._last_G[first:end] >= start_us)
        return [self._groups[number] for number in numbers]

    def next_first_us(self, from_us: int) -> int | None:
        """Returns the first event of the groups that begin at or after a time."""
        number = int(np.searchsorted(self._first_G, from_us))
        return int(self._first_G[number]) if number < len(self._groups) else None


def _placed(file: StreamFile) -> Iterator[PlacedGroup]:
    """Yields the row groups of a file; rows without a time count at the last event before them."""
    reached_us = file.first_us
    for group in file.groups:
        first_us, last_us = group.bounds or (reached_us, reached_us)
        yield PlacedGroup(file, group.index, group.first_row, group.rows, first_us, last_us)
        reached_us = last_us
