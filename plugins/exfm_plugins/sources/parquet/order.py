"""Orders files by their first event, and finds the times that the stream reaches in each row group."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


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
    """Describes a row group in the stream, which reaches ``first_us`` at its beginning and ``last_us`` at its end.

    ``overlaps`` names an earlier file that has reached later times than this group begins with, or is empty.
    """

    file: StreamFile
    index: int
    first_row: int
    first_us: int
    last_us: int
    overlaps: str


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


def placed(files: Sequence[StreamFile]) -> Iterator[PlacedGroup]:
    """Yields the row groups of the stream, in order; neither of their times decreases from group to group.

    Rows that go back in time or have no time count at the time that the stream has reached.
    """
    newest = files[0].first_us if files else 0
    reached_by = ""
    for file in files:
        for group in file.groups:
            first, last = group.bounds or (newest, newest)
            # A group that goes back within its file is a disorder of that file, and no overlap.
            overlaps = reached_by if first < newest and reached_by != file.path else ""
            yield PlacedGroup(file, group.index, group.first_row, max(newest, first), max(newest, last), overlaps)
            if last > newest:
                newest, reached_by = last, file.path
