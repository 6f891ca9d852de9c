"""Makes rows of messages.

Legend: M messages, R rows of a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exfm.sources import ROW_NUMBER, YEAR_9999_US, column_times, mark_bad_rows, place_ids
from exfm_plugins.sources.kafka.client import Messages
from exfm_plugins.sources.kafka.config import KafkaConfig
from exfm_plugins.sources.kafka.partition import Chunk, fill_times


class EventTimes:
    """Reads the event times of messages, without their other columns."""

    def __init__(self, config: KafkaConfig) -> None:
        self._column = config.event_time
        self._unit = config.time_unit
        self._decoder = config.decoder((config.event_time,))

    def read(self, values: Sequence[bytes | None]) -> tuple[NDArray[np.int64], NDArray[np.bool_], list[str | None]]:
        """Returns times in microseconds, which are missing, and reasons why values cannot be read; (M,) each."""
        rows, reasons = self._decoder.decode(values)
        time_M, missing_M = self.convert(rows.column(0), reasons)
        return time_M, missing_M, reasons

    def convert(self, column: pa.Array, reasons: list[str | None]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Converts times to microseconds, and adds the reason for those that cannot be."""
        time_M = column_times(column, self._unit)
        missing_M = column.is_null().to_numpy(zero_copy_only=False)
        for number in np.flatnonzero(time_M > YEAR_9999_US).tolist():
            reasons[number] = f"{self._column} lies past the year 9999; does it count a smaller unit than time_unit?"
        return time_M, missing_M | (time_M > YEAR_9999_US)


class MessageRows:
    """Decodes all columns of messages."""

    def __init__(self, config: KafkaConfig) -> None:
        self._config = config
        self._times = EventTimes(config)
        self._decoder = config.decoder(config.value_columns)

    def decode(self, messages: Messages, chunk: Chunk) -> tuple[pa.RecordBatch, NDArray[np.int64]]:
        """Decodes the messages of a chunk.

        Returns:
            The rows, and the times at which they are in the stream.
        """
        config = self._config
        rows, reasons = self._decoder.decode(messages.values)
        index = rows.schema.get_field_index(config.event_time)
        time_R, missing_R = self._times.convert(rows.column(index), reasons)
        unread = [number for number, reason in enumerate(reasons) if reason is not None]
        if unread:
            # Of a value with a wrong column the time may be readable: its row is then in the window of its event.
            time_R = time_R.copy()  # Arrow's memory is read-only
            time_R[unread], missing_R[unread], _ = self._times.read([messages.values[number] for number in unread])
        stamps = pa.array(time_R, mask=missing_R).view(pa.timestamp("us"))
        rows = rows.set_column(index, config.event_time, stamps)
        offset_R = messages.offset_M
        if config.example_ids == "offset":
            rows = rows.append_column(config.example_id, _offset_ids(f"{config.topic}/{chunk.partition}", offset_R))
        rows = mark_bad_rows(rows, pa.array(reasons, pa.string()))
        # The messages of a window do not follow each other: each row says its offset.
        rows = rows.append_column(ROW_NUMBER, pa.array(offset_R))
        return rows, fill_times(time_R, missing_R, chunk.before_us)


def _offset_ids(name: str, offset_R: NDArray[np.int64]) -> pa.Array:
    """Returns ids of examples that have none in the log, from their partition and offset."""
    if not offset_R.size:
        return pa.array([], pa.int64())
    first, last = int(offset_R[0]), int(offset_R[-1])
    return place_ids(name, first, last - first + 1).take(pa.array(offset_R - first))
