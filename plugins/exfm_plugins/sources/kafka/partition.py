"""Remembers the event times of each stretch of a partition's log.

Legend: M messages, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

CHUNK = 4096
"""Offsets of a chunk. A chunk begins at a multiple, so that it is the same stretch for every process."""

BUCKET_US = 300_000_000
"""Event times of a bucket, five minutes: new events of a chunk leave the buckets of earlier windows as they were, so
that these are not compared again for late rows. Shorter buckets would be too many to list."""


@dataclass(frozen=True)
class Bucket:
    """Describes the messages of a chunk with event times between two multiples of ``BUCKET_US``.

    Attributes:
        number: the first multiple.
        first_us, last_us: the first and the last time of its messages, in microseconds.
        first, last: the offsets of the first and the last message.
    """

    number: int
    first_us: int
    last_us: int
    first: int
    last: int


@dataclass(frozen=True)
class Chunk:
    """Describes a stretch of a partition's log.

    Attributes:
        partition: its partition.
        number: its index in the partition.
        first, end: the offsets that are there, ``first <= offset < end``.
        messages: the number of messages.
        buckets: its messages by time; none while no message of the partition has a time.
        before_us: the time of messages without a time at its beginning, which is that of the message before them.
    """

    partition: int
    number: int
    first: int
    end: int
    messages: int
    buckets: tuple[Bucket, ...]
    before_us: int | None


def fill_times(time_R: NDArray[np.int64], missing_R: NDArray[np.bool_], before_us: int | None) -> NDArray[np.int64]:
    """Gives messages without a time that of the message before them.

    Args:
        time_R: times of consecutive messages.
        missing_R: which of them have none.
        before_us: the time of the message before the first; that of the first message with a time if None.
    """
    if not missing_R.any():
        return time_R
    if before_us is None:
        before_us = int(time_R[~missing_R][0])
    # Row whose time each row takes: the running maximum carries the last row with a time forward.
    source_R = np.maximum.accumulate(np.where(missing_R, -1, np.arange(missing_R.size)))
    return np.where(source_R < 0, before_us, time_R[source_R])


class PartitionLog:
    """Follows the log of a partition.

    Args:
        number: the partition.
        disorder_us: how much earlier than an earlier message an event may be.

    Attributes:
        low, end: the first offset that the broker keeps, and that after the last message that was looked at.
        chunks: the stretches in between.
        newest_ms: the timestamp of the newest message; None without a message.
        reached_us: the newest event time, those after the time of the look left out; None without events.
        removed_us: events before this time may have been removed; None if all are there.
    """

    def __init__(self, number: int, disorder_us: int) -> None:
        self.number = number
        self.low = self.end = 0
        self.chunks: list[Chunk] = []
        self.newest_ms: int | None = None
        self.reached_us: int | None = None
        self.removed_us: int | None = None
        self._disorder_us = disorder_us
        self._last_us: int | None = None
        self._has_gap = False

    @property
    def is_emptied(self) -> bool:
        """Tells whether messages were removed whose times nobody knows, and none has come since."""
        return self._has_gap

    def remove_before(self, low: int) -> None:
        """Forgets the messages that the broker does not keep any more."""
        self.low = max(low, self.low)
        kept: list[Chunk] = []
        for chunk in self.chunks:
            if chunk.first >= self.low:
                kept.append(chunk)
                continue
            for bucket in chunk.buckets:
                if bucket.first < self.low:
                    self._removed_until(bucket.last_us + 1)
            if chunk.end > self.low:
                buckets = tuple(bucket for bucket in chunk.buckets if bucket.last >= self.low)
                before_us = chunk.before_us
                if before_us is None and chunk.buckets:
                    # The first message with a time may be among those that are gone.
                    before_us = chunk.buckets[0].first_us
                kept.append(replace(chunk, first=self.low, buckets=buckets, before_us=before_us))
        self.chunks = kept
        if self.end < self.low:
            # Removed before they were looked at.
            self.end, self._has_gap = self.low, True

    def add(
        self,
        end: int,
        offset_M: NDArray[np.int64],
        time_M: NDArray[np.int64],
        missing_M: NDArray[np.bool_],
        newest_ms: int,
        now_us: int,
    ) -> None:
        """Adds the messages from the end until before another offset, all in a single chunk.

        Args:
            end: the offset after them.
            offset_M: their offsets.
            time_M, missing_M: times of their events, and which have none.
            newest_ms: the newest timestamp.
            now_us: the time now. An event that says to be later does not move the stream on.
        """
        first, self.end = self.end, end
        if offset_M.size:
            self.newest_ms = max(newest_ms, self.newest_ms or 0)
        before_us = self._last_us
        if not missing_M.all():
            good_M = time_M[~missing_M]
            self._last_us = int(good_M[-1])
            self._first_time(int(good_M[0]))
            reached_us = min(int(good_M.max()), now_us)
            self.reached_us = reached_us if self.reached_us is None else max(self.reached_us, reached_us)
        buckets: tuple[Bucket, ...] = ()
        if offset_M.size and self._last_us is not None:
            buckets = _buckets(offset_M, fill_times(time_M, missing_M, before_us))
        chunk = Chunk(self.number, first // CHUNK, first, end, offset_M.size, buckets, before_us)
        if self.chunks and self.chunks[-1].number == chunk.number:
            chunk = _joined(self.chunks.pop(), chunk)
        self.chunks.append(chunk)

    def _first_time(self, time_us: int) -> None:
        """Takes the first time after messages without times, or after a gap."""
        if self._has_gap:
            # Removed messages came before this message, and are later by no more than the disorder.
            self._removed_until(time_us + self._disorder_us + 1)
            self._has_gap = False
        for index, chunk in enumerate(self.chunks):
            if chunk.messages and not chunk.buckets and chunk.before_us is None:
                bucket = Bucket(time_us // BUCKET_US, time_us, time_us, chunk.first, chunk.end - 1)
                self.chunks[index] = replace(chunk, buckets=(bucket,), before_us=time_us)

    def _removed_until(self, time_us: int) -> None:
        self.removed_us = time_us if self.removed_us is None else max(self.removed_us, time_us)


def _buckets(offset_M: NDArray[np.int64], time_M: NDArray[np.int64]) -> tuple[Bucket, ...]:
    """Puts messages in buckets, in the order of time."""
    number_M = time_M // BUCKET_US
    buckets: list[Bucket] = []
    for number in np.unique(number_M).tolist():
        within = np.flatnonzero(number_M == number)
        times, offsets = time_M[within], offset_M[within]
        buckets.append(Bucket(number, int(times.min()), int(times.max()), int(offsets[0]), int(offsets[-1])))
    return tuple(buckets)


def _joined(chunk: Chunk, more: Chunk) -> Chunk:
    """Returns a chunk with the messages that follow it."""
    before_us = chunk.before_us if chunk.messages else more.before_us
    return replace(
        chunk,
        end=more.end,
        messages=chunk.messages + more.messages,
        buckets=_joined_buckets([*chunk.buckets, *more.buckets]),
        before_us=before_us,
    )


def _joined_buckets(buckets: Iterable[Bucket]) -> tuple[Bucket, ...]:
    """Joins buckets of a number; the messages of later ones follow."""
    joined: dict[int, Bucket] = {}
    for bucket in buckets:
        before = joined.get(bucket.number)
        if before is not None:
            first_us, last_us = min(before.first_us, bucket.first_us), max(before.last_us, bucket.last_us)
            bucket = Bucket(bucket.number, first_us, last_us, before.first, bucket.last)
        joined[bucket.number] = bucket
    return tuple(joined[number] for number in sorted(joined))
