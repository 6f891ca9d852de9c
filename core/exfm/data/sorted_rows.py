"""Rows that a process has read of a window, in order, and what the other processes of the job have to hear of them.

Legend: N rows.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.data.column_types import unify
from exfm.data.id_kinds import SeenKind
from exfm.data.skips import Skip, SkipLog
from exfm.data.time_order import in_time_order, row_keys
from exfm.data.validation import RowChecker
from exfm.interfaces.schema import FeatureSchema

I64 = npt.NDArray[np.int64]

LATEST = int(np.iinfo(np.int64).max)
Key = tuple[int, int]
"""Time and example id, by which rows are ordered."""


@dataclass
class News:
    """Everything that a process has seen since it last said so, but its rows.

    Attributes:
        files: names of files, in the order of their numbers.
        kinds: kinds of columns of ids.
        left_out: bad rows.
        rows: number of rows that were read, bad rows included.
        error: name of its class and message, of an error that ended the reading.
    """

    files: list[str] = field(default_factory=list)
    kinds: dict[str, SeenKind] = field(default_factory=dict)
    left_out: list[Skip] = field(default_factory=list)
    rows: int = 0
    error: tuple[str, str] | None = None

    def add(self, later: News) -> None:
        """Adds later news."""
        self.files += later.files
        self.kinds |= later.kinds
        self.left_out += later.left_out
        self.rows += later.rows

    def encode(self) -> bytes:
        """Encodes the news as JSON; nothing, where there are none but the number of rows."""
        if not (self.files or self.kinds or self.left_out or self.error):
            return b""
        return json.dumps([self.files, self.kinds, self.left_out, self.error]).encode()

    @classmethod
    def decode(cls, data: bytes) -> News:
        """Decodes news, without the number of rows."""
        if not data:
            return cls()
        files, kinds, left_out, error = json.loads(data)
        seen = {column: SeenKind(*kind) for column, kind in kinds.items()}
        return cls(files, seen, list(map(tuple, left_out)), error=error)


@dataclass(frozen=True)
class SortedRows:
    """Consecutive rows of a portion, in order, with their positions; and the news until they came."""

    rows: pa.RecordBatch
    news: News


def sorted_rows(batches: Iterator[pa.RecordBatch], checker: RowChecker, schema: FeatureSchema) -> Iterator[SortedRows]:
    """Checks and sorts the rows of a portion.

    Args:
        batches: as the source yields them.
        checker: numbers positions, and lists bad rows in a ``SkipLog``.
    """
    rows = None
    for rows in in_time_order(map(checker.check, batches), schema):
        yield SortedRows(rows, _take_news(checker))
    # Bad rows may come after the last good row.
    yield SortedRows(pa.RecordBatch.from_pydict({}), _take_news(checker))


def _take_news(checker: RowChecker) -> News:
    assert isinstance(checker.skips, SkipLog) and checker.positions is not None
    rows, left_out = checker.skips.take()
    kinds, checker.new_kinds = checker.new_kinds, {}
    return News(checker.positions.take_new(), kinds, left_out, rows)


class WaitingRows:
    """Holds rows of this process, in order, until they are sent."""

    def __init__(self, schema: FeatureSchema) -> None:
        self._schema = schema
        self._runs: deque[tuple[pa.RecordBatch, I64, I64]] = deque()
        self.size = 0

    def add(self, rows: pa.RecordBatch) -> None:
        """Adds rows behind those that wait."""
        if rows.num_rows:
            self._runs.append((rows, *row_keys(rows, self._schema)))
            self.size += rows.num_rows

    def key(self, position: int) -> Key:
        """Returns the key of a row by its position."""
        for rows, time_N, id_N in self._runs:
            if position < rows.num_rows:
                return int(time_N[position]), int(id_N[position])
            position -= rows.num_rows
        raise IndexError(position)

    def take(self, until: Key) -> tuple[pa.RecordBatch | None, I64, I64]:
        """Removes the rows whose key is at most a key, and returns them with their times and ids."""
        taken: list[tuple[pa.RecordBatch, I64, I64]] = []
        while self._runs:
            rows, time_N, id_N = self._runs.popleft()
            first, last = np.searchsorted(time_N, until[0]), np.searchsorted(time_N, until[0], side="right")
            stop = int(first + np.searchsorted(id_N[first:last], until[1], side="right"))
            if stop:
                taken.append((rows.slice(0, stop), time_N[:stop], id_N[:stop]))
            if stop < rows.num_rows:
                self._runs.appendleft((rows.slice(stop), time_N[stop:], id_N[stop:]))
                break
        if not taken:
            return None, np.zeros(0, np.int64), np.zeros(0, np.int64)
        rows_of_runs, times_of_runs, ids_of_runs = zip(*taken, strict=True)
        joined = join_rows(list(rows_of_runs))
        self.size -= joined.num_rows
        return joined, np.concatenate(times_of_runs), np.concatenate(ids_of_runs)


def join_rows(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Concatenates batches of checked rows."""
    if any(batch.schema != batches[0].schema for batch in batches):
        batches = unify(batches)
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
