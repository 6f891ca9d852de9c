"""Knows which stretches of a topic hold the events of a time, and until when the topic is complete.

Legend: P buckets of all chunks, M messages of a chunk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from exfm.components import NotYetError
from exfm.sources import StreamPart
from exfm_plugins.sources.kafka.client import Topic
from exfm_plugins.sources.kafka.partition import CHUNK, Bucket, Chunk, PartitionLog
from exfm_plugins.sources.kafka.rows import EventTimes

logger = logging.getLogger(__name__)

_LONG_AGO = -(2**62)


@dataclass(frozen=True)
class Bounds:
    """Bounds how partitions may differ, in microseconds.

    Attributes:
        start_us: events before it are not of the stream; None if all are.
        disorder_us: how much earlier than an earlier message of its partition an event may be.
        idle_us: how long ago the newest message of an idle partition came.
    """

    start_us: int | None
    disorder_us: int
    idle_us: int


@dataclass(frozen=True)
class Piece:
    """Names a bucket of a chunk."""

    chunk: Chunk
    bucket: Bucket

    @property
    def first_us(self) -> int:
        """Returns the time of its first event."""
        return self.bucket.first_us

    @property
    def last_us(self) -> int:
        """Returns the time of its last event."""
        return self.bucket.last_us


class TopicIndex:
    """Remembers, for each chunk of each partition, the times of its events by bucket.

    A message is looked at once. Memory holds some numbers for every ``CHUNK`` messages that the broker keeps.

    Args:
        name: the topic.
        topic: reads it; it is used by ``look`` alone.
        times: reads the event times.
        bounds: the rules of completeness.
    """

    def __init__(self, name: str, topic: Topic, times: EventTimes, bounds: Bounds) -> None:
        self._name = name
        self._topic = topic
        self._times = times
        self._bounds = bounds
        self._logs: dict[int, PartitionLog] = {}
        self._complete_us: int | None = None
        self._first_reason = ""
        self._emptied: set[int] = set()
        self.has_looked = False
        self._is_pinned = False
        self.pieces: tuple[Piece, ...] = ()
        self._first_P = self._last_P = self._reached_P = np.zeros(0, np.int64)

    def look(self) -> None:
        """Looks at the messages that have come since the last look, and at those that were removed.

        Raises:
            ValueError: the topic cannot be read, or has fewer messages than before. A ``NotYetError`` if it does not
                exist or the brokers do not answer.
        """
        before = {number: (log.low, log.end) for number, log in self._logs.items()}
        for number in self._topic.partitions():
            # A new partition begins with its first message, as all others did.
            log = self._logs.setdefault(number, PartitionLog(number, self._bounds.disorder_us))
            low, end = self._topic.offsets(number)
            if end < log.end:
                raise ValueError(
                    f"kafka: {self._name!r}, partition {number} ends at offset {end}, and ended at {log.end} before. "
                    "Was the topic made anew, or has the broker lost messages? Start the job again, in another run_dir "
                    "if the topic is another"
                )
            log.remove_before(low)
            self._warn_emptied(log)
            self._read_on(log, end)
        self._topic.stop()
        if self._is_pinned or before != {number: (log.low, log.end) for number, log in self._logs.items()}:
            self._sort()
        self.has_looked = True

    @property
    def lacks_times(self) -> bool:
        """Tells whether there are messages, and none of them has an event time."""
        has_messages = any(chunk.messages for log in self._logs.values() for chunk in log.chunks)
        return has_messages and all(log.reached_us is None for log in self._logs.values())

    def _read_on(self, log: PartitionLog, end: int) -> None:
        """Reads the times of new messages of a partition, a chunk at a time."""
        while log.end < end:
            stop = min(end, (log.end // CHUNK + 1) * CHUNK)
            messages = self._topic.read(log.number, log.end, stop)
            time_M, missing_M, reasons = self._times.read(messages.values)
            if not self._first_reason:
                self._first_reason = next((reason for reason in reasons if reason is not None), "")
            log.add(stop, messages.offset_M, time_M, missing_M, messages.newest_ms, _now_us())

    def _warn_emptied(self, log: PartitionLog) -> None:
        if log.is_emptied and log.number not in self._emptied:
            self._emptied.add(log.number)
            logger.warning(
                "kafka: %r, partition %d: the broker has removed the messages before offset %d, and when their events "
                "were is not known; rows among them that this run has not read are lost",
                *(self._name, log.number, log.low),
            )

    def _sort(self) -> None:
        """Sorts the buckets by their first event."""
        pieces: list[Piece] = []
        for log in self._logs.values():
            for chunk in log.chunks:
                pieces += [Piece(chunk, bucket) for bucket in chunk.buckets]
        start_us = self._bounds.start_us
        if start_us is not None:
            pieces = [piece for piece in pieces if piece.bucket.last_us >= start_us]
        pieces.sort(key=lambda piece: (piece.first_us, piece.last_us, piece.chunk.partition, piece.chunk.number))
        self._is_pinned = False
        self._hold(pieces)

    def pin(self, parts: Sequence[StreamPart], name: Callable[[Piece], str]) -> bool:
        """Keeps, until the next look, the messages of the parts that another process has listed; False if some lack.

        Args:
            parts: in the order of the other process's index, which batches follow.
            name: returns the name of a piece's part.
        """
        by_name = {name(piece): piece for piece in self.pieces}
        pieces: list[Piece] = []
        for each in parts:
            piece = by_name.get(each.name)
            if piece is None or piece.bucket.last < int(each.version):
                return False
            bucket = replace(piece.bucket, first_us=each.first_us, last_us=each.last_us, last=int(each.version))
            pieces.append(Piece(piece.chunk, bucket))
        self._is_pinned = True
        self._hold(pieces)
        return True

    def _hold(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        self._first_P = np.array([piece.first_us for piece in pieces], np.int64)
        self._last_P = np.array([piece.last_us for piece in pieces], np.int64)
        # Never decreases, so that buckets that end before a window can be passed over by bisection.
        self._reached_P = np.maximum.accumulate(self._last_P) if pieces else self._last_P

    def overlapping(self, start_us: int, end_us: int) -> list[Piece]:
        """Lists the buckets that may have events in ``start_us <= time < end_us``, by their first event."""
        first = int(np.searchsorted(self._reached_P, start_us))
        end = int(np.searchsorted(self._first_P, end_us))
        return [self.pieces[number] for number in first + np.flatnonzero(self._last_P[first:end] >= start_us)]

    def next_first_us(self, from_us: int) -> int | None:
        """Returns the first event of the buckets that begin at or after a time."""
        number = int(np.searchsorted(self._first_P, from_us))
        return int(self._first_P[number]) if number < len(self.pieces) else None

    def removed(self) -> Iterator[PartitionLog]:
        """Yields the partitions of which the broker has removed messages, if it is known which events they may hold."""
        for number in sorted(self._logs):
            if self._logs[number].removed_us is not None:
                yield self._logs[number]

    def removed_until_us(self) -> int:
        """Returns the time from which all partitions have all events."""
        return max((log.removed_us or _LONG_AGO for log in self.removed()), default=_LONG_AGO)

    def complete_until_us(self) -> int:
        """Returns the time until which all partitions have their events.

        It is the newest event of the partition that is furthest behind, less the disorder. Idle partitions do not
        count. If all are idle, it is the end of the topic.

        Raises:
            NotYetError: no message has an event time.
        """
        if not self.pieces:
            raise NotYetError(f"kafka: {self._name!r} has no message with an event time{self._why()}")
        active_us: list[int] = []
        for log in self._logs.values():
            if log.reached_us is not None and not self._is_idle(log):
                active_us.append(log.reached_us - self._bounds.disorder_us)
        complete_us = min(active_us) if active_us else int(self._last_P.max()) + 1
        if self._complete_us is not None:
            # A partition that was idle may go on before the others: its events come late, and time does not go back.
            complete_us = max(complete_us, self._complete_us)
        self._complete_us = complete_us
        return complete_us

    def _is_idle(self, log: PartitionLog) -> bool:
        return _now_us() - (log.newest_ms or 0) * 1000 >= self._bounds.idle_us

    def _why(self) -> str:
        return f": {self._first_reason}" if self._first_reason else ""


def _now_us() -> int:
    return time.time_ns() // 1000
