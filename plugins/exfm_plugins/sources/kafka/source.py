"""Streams the messages of a Kafka topic; each belongs to the window of its event, wherever it lies.

Legend: R rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import exfm
from exfm.sources import microseconds
from exfm_plugins.sources.kafka.client import Topic
from exfm_plugins.sources.kafka.config import KafkaConfig
from exfm_plugins.sources.kafka.index import Bounds, Piece, TopicIndex
from exfm_plugins.sources.kafka.partition import BUCKET_US, CHUNK, Chunk, fill_times
from exfm_plugins.sources.kafka.rows import EventTimes, MessageRows

_WHOLE = exfm.sources.Shard()
_TIMES_KEPT = 8
"""Buckets whose times are kept in memory."""


class Kafka(exfm.DataSource):
    """Streams a Kafka topic (kafka.apache.org) of any number of partitions.

    The value of a message is a row: a JSON object, or an Avro record. A row belongs to the window of its event time, in
    whichever partition and at whichever offset it is: the first look at the topic reads the event time of every message
    that the broker keeps, and later looks those of new messages. Windows then read the stretches of 4096 offsets whose
    times overlap them.

    The stream is complete up to its watermark: the newest event of the partition that is furthest behind, less
    ``out_of_orderness``. A partition whose newest message is older than ``idle_partition`` does not hold it back; where
    all are, the watermark is the newest event. Partitions may be added. A row that comes later is counted as late and
    set aside, because ``parts`` lists the stretches and how far they reach.

    A value that cannot be read and a message without a value are bad rows, at the time of the message before them in
    their partition; messages name partition and offset. Nothing is stored at the broker: no group is joined, and no
    offset committed.

    Raises:
        ValueError: a setting is wrong, the topic may not be read, or it has lost messages of a window
            (``exfm.components.RowsRemovedError``). An ``exfm.components.NotYetError`` if there is no such topic or no
            message yet, or the brokers do not answer for ``timeout``.
    """

    name: ClassVar[str] = "kafka"
    in_order: ClassVar[bool] = False
    free_fields: ClassVar[frozenset[str]] = frozenset(
        {"bootstrap_servers", "options", "options_file", "out_of_orderness", "idle_partition", "timeout"}
    )

    Config = KafkaConfig
    config: KafkaConfig

    def __init__(self, config: KafkaConfig, whole: Kafka | None = None) -> None:
        super().__init__(config)
        # The source that this is a selection of.
        self._whole = whole
        # Windows ask for the same buckets repeatedly.
        self._kept_times: dict[Piece, NDArray[np.int64]] = {}

    def schema(self) -> exfm.schema.FeatureSchema:
        """Returns the configured schema, after checking that values can be decoded by it."""
        self.config.decoder(self.config.value_columns)
        return self.config.feature_schema()

    def time_range(self) -> exfm.sources.TimeRange:
        """Returns the range from ``start``, or the first event, to the watermark."""
        self._index.look()
        start_us = self.config.start_us
        if start_us is None:
            start_us = self._first_us()
        elif not self._index.pieces and not self._index.lacks_times:
            # Of removed messages there are windows, which are not passed over.
            return exfm.sources.TimeRange(start_us, max(start_us, self._index.removed_until_us()))
        return exfm.sources.TimeRange(start_us, max(start_us, self._index.complete_until_us()))

    def parts(self) -> Sequence[exfm.sources.StreamPart]:
        """Returns the stretches of 4096 offsets by event time, five minutes each; the newest of a partition grow."""
        self._index.look()
        start_us = self.config.start_us
        parts: list[exfm.sources.StreamPart] = []
        for piece in self._index.pieces:
            first_us = piece.first_us if start_us is None else max(piece.first_us, start_us)
            # Messages are appended, so that the last says which there are; those that retention removes are no change.
            version = f"{piece.bucket.last}"
            parts.append(exfm.sources.StreamPart(self._name(piece), version, first_us, piece.last_us))
        return parts

    def pin(self, parts: Sequence[exfm.sources.StreamPart]) -> bool:
        """Reads the messages that another process has listed, and not those that have come since."""
        self._index.look()
        return self._index.pin(parts, self._name)

    def next_event_us(self, from_us: int) -> int | None:
        """Returns the first event at or after a time.

        Only the buckets that contain the time are read, and none where they are many: events are dense there.
        """
        index = self._seen_index
        if from_us < index.removed_until_us():
            # Nobody knows whether there were events, so the window is not passed over: reading it says that.
            return from_us
        if self.config.start_us is not None:
            from_us = max(from_us, self.config.start_us)
        following_us = index.next_first_us(from_us)
        spanning = [piece for piece in index.overlapping(from_us, from_us + 1) if piece.first_us < from_us]
        if len(spanning) > _TIMES_KEPT:
            return from_us
        for piece in spanning:
            sorted_R = self._sorted_times(piece)
            # Not beyond the end, which the bucket's last event is not before.
            time_us = int(sorted_R[np.searchsorted(sorted_R, from_us)])
            following_us = time_us if following_us is None else min(following_us, time_us)
        return following_us

    def select(self, schema: exfm.schema.FeatureSchema) -> Kafka:
        """Returns the stream with fewer columns, which shares the index of the topic."""
        strings = tuple(column for column in self.config.strings if column in schema.columns)
        config = self.config.with_schema(schema).model_copy(update={"strings": strings})
        return Kafka(config, self)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = _WHOLE) -> Iterator[pa.RecordBatch]:
        """Yields a window's rows, chunk by chunk in the order of their first events."""
        return exfm.sources.slice_rows(self._window(window), shard)

    @cached_property
    def _index(self) -> TopicIndex:
        if self._whole is not None:
            return self._whole._index
        config = self.config
        bounds = Bounds(config.start_us, microseconds(config.out_of_orderness), microseconds(config.idle_partition))
        return TopicIndex(config.topic, self._open(), EventTimes(config), bounds)

    @property
    def _seen_index(self) -> TopicIndex:
        """Returns the index as of the last look."""
        if not self._index.has_looked:
            self._index.look()
        return self._index

    def _open(self) -> Topic:
        config = self.config
        timeout_s = config.timeout.total_seconds()
        return Topic(config.bootstrap_servers, config.topic, config.options, config.options_file, timeout_s)

    def _name(self, piece: Piece) -> str:
        first = piece.chunk.number * CHUNK
        since = exfm.sources.Window(0, piece.bucket.number * BUCKET_US, 0)
        return f"{self.config.topic}/{piece.chunk.partition}, offsets {first}-{first + CHUNK - 1} from {since}"

    def _first_us(self) -> int:
        """Returns the first event of a topic of which no message was removed."""
        index = self._index
        index.complete_until_us()  # raises where there is no event
        removed = next(index.removed(), None)
        if removed is not None:
            since = exfm.sources.Window(0, index.removed_until_us() + 999_999, 0)
            raise ValueError(
                f"kafka: {self.config.topic!r}, partition {removed.number}: the broker has removed the messages before "
                f"offset {removed.low}; set start, the time from which windows are counted, to {since} or later, and "
                "keep it"
            )
        return index.pieces[0].first_us

    def _check_kept(self, window: exfm.sources.Window) -> None:
        """Raises RowsRemovedError if the broker may have removed messages with events of a window."""
        for log in self._index.removed():
            assert log.removed_us is not None
            if window.start_us < log.removed_us:
                until = exfm.sources.Window(0, log.removed_us + 999_999, 0)
                raise exfm.components.RowsRemovedError(
                    f"kafka: {self.config.topic!r}, partition {log.number}: the broker has removed the messages before "
                    f"offset {log.low}, and events of the window {window} may be among them: all events are there from "
                    f"{until} on. Let the broker keep messages for longer (retention.ms, retention.bytes) than the job "
                    "takes to read them; to go on without these rows, set stream.start to the start of a window after "
                    "that"
                )

    def _window(self, window: exfm.sources.Window) -> Iterator[pa.RecordBatch]:
        if self.config.start_us is not None:
            window = replace(window, start_us=max(window.start_us, self.config.start_us))
        if window.start_us >= window.end_us:
            return
        pieces = self._seen_index.overlapping(window.start_us, window.end_us)
        self._check_kept(window)
        if not pieces:
            return
        decoder = MessageRows(self.config)
        next_us = _next_us(pieces, window)
        with self._open() as topic:
            for chunk, together in _by_chunk(pieces).items():
                # The first message of a bucket has a time, or begins the chunk: those before it are not needed.
                first = max(chunk.first, min(piece.bucket.first for piece in together))
                messages = topic.read(chunk.partition, first, max(piece.bucket.last for piece in together) + 1)
                rows, time_R = decoder.decode(messages, chunk)
                inside_R = (time_R >= window.start_us) & (time_R < window.end_us)
                for piece in together:
                    within_R = inside_R & (time_R // BUCKET_US == piece.bucket.number)
                    # Of a chunk that has grown since the look, the messages until then.
                    selected = np.flatnonzero(within_R & (messages.offset_M <= piece.bucket.last))
                    if selected.size:
                        first = int(messages.offset_M[selected[0]])
                        origin = exfm.sources.Origin(self._name(piece), first, next_us[piece])
                        yield origin.mark(rows.take(pa.array(selected)))

    def _sorted_times(self, piece: Piece) -> NDArray[np.int64]:
        """Returns the times of a bucket, sorted; those of the buckets that were asked for last are kept."""
        sorted_R = self._kept_times.pop(piece, None)
        if sorted_R is None:
            chunk, bucket = piece.chunk, piece.bucket
            with self._open() as topic:
                messages = topic.read(chunk.partition, max(bucket.first, chunk.first), bucket.last + 1)
            time_R, missing_R, _ = EventTimes(self.config).read(messages.values)
            time_R = fill_times(time_R, missing_R, chunk.before_us)
            sorted_R = np.sort(time_R[time_R // BUCKET_US == bucket.number])
        self._kept_times[piece] = sorted_R
        while len(self._kept_times) > _TIMES_KEPT:
            del self._kept_times[next(iter(self._kept_times))]
        return sorted_R


def _by_chunk(pieces: Sequence[Piece]) -> dict[Chunk, list[Piece]]:
    """Returns the pieces of each chunk, in the order of the first of them."""
    by_chunk: dict[Chunk, list[Piece]] = {}
    for piece in pieces:
        by_chunk.setdefault(piece.chunk, []).append(piece)
    return by_chunk


def _next_us(pieces: Sequence[Piece], window: exfm.sources.Window) -> dict[Piece, int]:
    """Returns, for each piece, a time before which no piece that is read later has an event of a window."""
    order = [piece for together in _by_chunk(pieces).values() for piece in together]
    following_us: dict[Piece, int] = {}
    least_us = window.end_us
    for piece in reversed(order):
        following_us[piece] = least_us
        least_us = min(least_us, max(piece.first_us, window.start_us))
    return following_us
