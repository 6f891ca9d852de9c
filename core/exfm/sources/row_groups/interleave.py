"""Reads several row groups at once, roughly in the order of time, so that few rows wait for earlier rows."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Generator, Iterator, Sequence

import pyarrow as pa

from exfm.sources.row_groups.order import PlacedGroup

Batches = Generator[tuple[int, pa.RecordBatch], None, None]
"""Batches of a row group, each with a time before which neither it nor any later batch of the group has a row."""

MOST_OPEN = 64
"""Row groups that are open at once. Where more overlap in time, they are read one after the other."""


def interleave(
    groups: Sequence[PlacedGroup], read: Callable[[PlacedGroup], Batches], start_us: int, end_us: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yields the batches of row groups, each with a time before which no later batch has a row.

    Args:
        groups: in the order of their first event.
        read: opens a row group.
        start_us, end_us: the window.
    """
    # Entries are unique by their number, so that batches are never compared.
    opened: list[tuple[int, int, pa.RecordBatch, Batches]] = []
    waiting = list(reversed(groups))
    number = 0
    while opened or waiting:
        while waiting and len(opened) < MOST_OPEN and (not opened or waiting[-1].first_us <= opened[0][0]):
            number += 1
            _push(opened, number, read(waiting.pop()))
        if not opened:
            continue
        # Beyond the limit a group is read to its end, to make room for the next.
        is_full = len(opened) == MOST_OPEN and bool(waiting) and waiting[-1].first_us <= opened[0][0]
        _, position, batch, batches = heapq.heappop(opened)
        if is_full:
            floor_us = _floor(opened, waiting, start_us, end_us)
            following = next(batches, None)
            while following is not None:
                yield batch, min(floor_us, following[0])
                batch, following = following[1], next(batches, None)
        else:
            _push(opened, position, batches)
        yield batch, _floor(opened, waiting, start_us, end_us)


def _push(opened: list[tuple[int, int, pa.RecordBatch, Batches]], number: int, batches: Batches) -> None:
    following = next(batches, None)
    if following is not None:
        heapq.heappush(opened, (following[0], number, following[1], batches))


def _floor(
    opened: list[tuple[int, int, pa.RecordBatch, Batches]], waiting: list[PlacedGroup], start_us: int, end_us: int
) -> int:
    """Returns a time before which neither the open nor the waiting groups have a row of the window."""
    floor_us = end_us
    if opened:
        floor_us = opened[0][0]
    if waiting:
        floor_us = min(floor_us, max(waiting[-1].first_us, start_us))
    return floor_us
