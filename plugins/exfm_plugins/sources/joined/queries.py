"""Sorts events, and finds the events of impressions, in DuckDB.

The names of columns in queries are positions (``k0`` a key, ``v0`` a value), never names of the user's columns.

Legend: A impressions that ask, E sorted events.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

if TYPE_CHECKING:
    import duckdb

I64 = NDArray[np.int64]

ANY_AGE_US = 1 << 62
"""A bound on the age of events that no event reaches; a time less this fits into 64 bits."""


@dataclass(frozen=True)
class Asked:
    """Impressions that ask for events.

    Attributes:
        time: their times in microseconds, (A,); null where there is none.
        keys: their keys, a column each, (A,).
    """

    time: pa.Array
    keys: Sequence[pa.Array]

    def bounds(self, first_us: int, last_us: int) -> tuple[int, int]:
        """Returns the first and the last time, moved by some microseconds."""
        time_A = self.time.drop_null().to_numpy()
        if not time_A.size:
            return 0, 0
        return int(time_A.min()) + first_us, int(time_A.max()) + last_us

    def table(self) -> pa.Table:
        """Returns the impressions as ``row``, ``t``, ``k0`` and so on."""
        names = ["row", "t", *_numbered("k", len(self.keys))]
        return pa.table([pa.array(np.arange(len(self.time))), self.time, *self.keys], names=names)


@dataclass(frozen=True)
class Events:
    """Events of a log.

    Attributes:
        time: their times in microseconds.
        keys: their keys, a column each, of the types of the impressions' keys.
        values: further columns, which decide the order of events of equal key and time.
    """

    time: pa.ChunkedArray
    keys: Sequence[pa.ChunkedArray]
    values: Sequence[pa.ChunkedArray] = ()

    def table(self) -> pa.Table:
        """Returns the events as ``t``, ``k0`` and so on, ``v0`` and so on."""
        names = ["t", *_numbered("k", len(self.keys)), *_numbered("v", len(self.values))]
        return pa.table([self.time, *self.keys, *self.values], names=names)


@dataclass(frozen=True)
class EventIndex:
    """Events in the order of key, time and values.

    Attributes:
        key_types: the types of the keys.
        runs: for each key, the position of its first event and that after its last: ``k0`` and so on, start, stop.
        time_E: their times.
        values: their values, (E,).
    """

    key_types: Sequence[pa.DataType]
    runs: pa.Table
    time_E: I64
    values: Sequence[pa.Array]


@dataclass(frozen=True)
class Runs:
    """Finds the events of impressions in an index by time.

    Attributes:
        index: the index.
        start_A, stop_A: the position of the first event of an impression's key, and that after its last.
        time_A: the times of the impressions.
    """

    index: EventIndex
    start_A: I64
    stop_A: I64
    time_A: I64

    def position(self, shift_us: int, after: bool = False) -> I64:
        """Returns, for each impression, the position of its key's first event at or after a time.

        Args:
            shift_us: the time, from that of the impression.
            after: whether events of exactly that time are passed over, too.
        """
        limit_A = self.time_A + shift_us
        low_A, high_A = self.start_A.copy(), self.stop_A.copy()
        # A bisection of all runs at once: each pass halves them.
        while (low_A < high_A).any():
            is_open_A = low_A < high_A
            middle_A = (low_A + high_A) // 2
            event_A = self.index.time_E[np.where(is_open_A, middle_A, 0)]
            is_before_A = is_open_A & (event_A <= limit_A if after else event_A < limit_A)
            low_A = np.where(is_before_A, middle_A + 1, low_A)
            high_A = np.where(is_open_A & ~is_before_A, middle_A, high_A)
        return low_A


@cache
def open_engine(threads: int, memory_mb: int) -> duckdb.DuckDBPyConnection:
    """Opens a database in memory, shared by all readers of a process, so that they share its memory, too.

    Queries write to the temporary folder where memory does not suffice.

    Raises:
        ValueError: duckdb is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise ValueError("joined needs the package duckdb: pip install 'exfm[joined]'") from error
    options: dict[str, Any] = {
        "threads": threads,
        "memory_limit": f"{memory_mb}MB",
        # A folder of this process alone, which DuckDB creates when it needs it, and removes.
        "temp_directory": str(Path(tempfile.gettempdir(), f"exfm-joined-{uuid.uuid4().hex}")),
    }
    return duckdb.connect(":memory:", config=options)


class Database:
    """Runs queries over tables in memory.

    Args:
        connection: an open connection.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    def sort(self, events: Events, first_us: int, last_us: int) -> EventIndex:
        """Sorts the events between two times, both included, that have a time and keys."""
        keys, values = _numbered("k", len(events.keys)), _numbered("v", len(events.values))
        order = ", ".join(f"{name} NULLS LAST" for name in [*keys, "t", *values])
        is_whole = " AND ".join(f"{name} IS NOT NULL" for name in keys)
        with self._registered(events=events.table()):
            rows = self._run(
                f"SELECT * FROM events WHERE t >= $first AND t <= $last AND {is_whole} ORDER BY {order}",
                first=first_us,
                last=last_us,
            )
        position = pa.array(np.arange(rows.num_rows))
        with self._registered(sorted=rows.select(keys).append_column("position", position)):
            runs = self._run(
                f"SELECT {', '.join(keys)}, min(position) AS start, max(position) + 1 AS stop FROM sorted GROUP BY ALL"
            )
        return EventIndex(
            [key.type for key in events.keys],
            runs,
            rows.column("t").to_numpy(),
            [_typed(rows.column(name), value.type) for name, value in zip(values, events.values, strict=True)],
        )

    def runs(self, asked: Asked, index: EventIndex) -> Runs:
        """Finds the events of each impression's key; none where its time or a key is null."""
        equal = " AND ".join(f"a.{name} = r.{name}" for name in _numbered("k", len(asked.keys)))
        with self._registered(asked=asked.table(), runs=index.runs):
            rows = self._run(
                "SELECT coalesce(r.start, 0) AS start, coalesce(r.stop, 0) AS stop, coalesce(a.t, 0) AS t "
                f"FROM asked a LEFT JOIN runs r ON {equal} AND a.t IS NOT NULL ORDER BY a.row"
            )
        return Runs(index, *(rows.column(name).to_numpy() for name in ("start", "stop", "t")))

    def _run(self, query: str, **parameters: int) -> Any:
        return self._connection.sql(query, params=parameters).to_arrow_table()

    @contextmanager
    def _registered(self, **tables: pa.Table) -> Iterator[None]:
        for name, table in tables.items():
            self._connection.register(name, table)
        try:
            yield
        finally:
            for name in tables:
                self._connection.unregister(name)


def _typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.Array:
    """Returns a column of a result with the type that it went in with, because DuckDB has no type of nulls alone."""
    return pa.nulls(len(column), kind) if pa.types.is_null(kind) else column.combine_chunks().cast(kind)


def _numbered(letter: str, count: int) -> list[str]:
    return [f"{letter}{number}" for number in range(count)]
