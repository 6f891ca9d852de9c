"""Finds the row groups of a window, and an order to read them in.

Legend: G row groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Group:
    """Describes a row group: its first row in the file, and its first and last time in microseconds, if it has any."""

    index: int
    first_row: int
    bounds: tuple[int, int] | None


@dataclass(frozen=True)
class StreamFile:
    """Describes a file with rows: path, version, row groups, and its first and last time in microseconds."""

    path: str
    version: str
    groups: tuple[Group, ...]
    first_us: int
    last_us: int


@dataclass(frozen=True)
class PlacedGroup:
    """Describes a row group with its file, and the times of its first and its last event."""

    file: StreamFile
    index: int
    first_row: int
    first_us: int
    last_us: int


def in_order(files: Iterable[tuple[str, str, tuple[Group, ...]]]) -> tuple[StreamFile, ...]:
    """Sorts files by the time of their first event, then by name.

    A file without times comes first, where its rows belong to the first window.

    Args:
        files: path, version and row groups of every file.
    """
    timed = [(path, version, groups, _join_bounds(groups)) for path, version, groups in files]
    start_us = min((bounds[0] for *_, bounds in timed if bounds), default=0)
    ordered = []
    for path, version, groups, bounds in timed:
        first_us, last_us = bounds or (start_us, start_us)
        ordered.append(StreamFile(path, version, groups, first_us, last_us))
    return tuple(sorted(ordered, key=lambda file: (file.first_us, file.path)))


def _join_bounds(groups: Sequence[Group]) -> tuple[int, int] | None:
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
        yield PlacedGroup(file, group.index, group.first_row, first_us, last_us)
        reached_us = last_us
