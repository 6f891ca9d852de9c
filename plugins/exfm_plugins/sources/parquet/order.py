"""The order of a stream: files by their first event, and where the rows of each row group stand in time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """One row group: its first row in the file, and its first and last time in microseconds, if it has any."""

    index: int
    first_row: int
    bounds: tuple[int, int] | None


@dataclass(frozen=True)
class StreamFile:
    """A file with rows: its path, its version, its row groups, and its first and last time in microseconds."""

    path: str
    version: str
    groups: tuple[Group, ...]
    first_us: int
    last_us: int


@dataclass(frozen=True)
class PlacedGroup:
    """A row group in the stream, which has got to ``first_us`` where it begins and to ``last_us`` where it ends.

    ``overlaps`` names another file that the stream has got there with, if rows of this group lie before.
    """

    file: StreamFile
    index: int
    first_row: int
    first_us: int
    last_us: int
    overlaps: str


def in_order(found: Iterable[tuple[str, str, tuple[Group, ...]]]) -> tuple[StreamFile, ...]:
    """Files by the time of their first event, then by name.

    A file in which no row has a time comes at the beginning, where its rows belong to the first window.

    Args:
        found: path, version and row groups of every file.
    """
    timed = [(path, version, groups, _bounds_of(groups)) for path, version, groups in found]
    start_us = min((bounds[0] for *_, bounds in timed if bounds), default=0)
    files = [
        StreamFile(path, version, groups, *(bounds or (start_us, start_us))) for path, version, groups, bounds in timed
    ]
    return tuple(sorted(files, key=lambda file: (file.first_us, file.path)))


def _bounds_of(groups: Sequence[Group]) -> tuple[int, int] | None:
    bounds = [group.bounds for group in groups if group.bounds]
    return (min(first for first, _ in bounds), max(last for _, last in bounds)) if bounds else None


def placed(files: Sequence[StreamFile]) -> Iterator[PlacedGroup]:
    """The row groups of the stream, in order; both of their times grow from group to group.

    Rows that go back in time, or have none, stand where the stream has got to.
    """
    newest = files[0].first_us if files else 0
    reached_by = ""
    for file in files:
        for group in file.groups:
            first, last = group.bounds or (newest, newest)
            overlaps = reached_by if first < newest and reached_by != file.path else ""
            yield PlacedGroup(file, group.index, group.first_row, max(newest, first), max(newest, last), overlaps)
            if last > newest:
                newest, reached_by = last, file.path
