"""Computes the columns that joins add to consecutive impressions.

Legend: A impressions of a slab, H the events of their histories.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exfm.sources import list_column, microseconds
from exfm_plugins.sources.joined.completeness import Completeness
from exfm_plugins.sources.joined.config import NOTHING, AsOfJoin, HistoryJoin, JoinedConfig, LabelJoin
from exfm_plugins.sources.joined.events import EventLog
from exfm_plugins.sources.joined.indexes import IndexedLog
from exfm_plugins.sources.joined.queries import ANY_AGE_US, I64, Asked, Database, EventIndex


@dataclass(frozen=True)
class Slab:
    """Holds consecutive impressions: their times in microseconds, and the plain columns that are joined on, (A,)."""

    time: pa.Array
    keys: Mapping[str, pa.Array]


@dataclass(frozen=True)
class _Newest:
    """The newest events before each impression.

    Attributes:
        positions: positions in ``index``, oldest first, (H,).
        offsets: those of impression i are ``positions[offsets[i]:offsets[i + 1]]``, (A + 1,).
    """

    index: EventIndex
    positions: I64
    offsets: NDArray[np.int32]


class Joins:
    """Computes the columns of the joins that the schema needs.

    Args:
        logs: by name.
        impressions: the impressions as a log.
    """

    def __init__(self, config: JoinedConfig, logs: Mapping[str, EventLog], impressions: EventLog) -> None:
        self._config = config
        self._active = config.active_joins()
        # Windows are read, and for each delay of labels the windows before them, in turn.
        most = 1 + len({label.delay for label in config.labels} - {NOTHING})
        self._logs: dict[str, IndexedLog] = {}
        self._next: dict[str, IndexedLog] = {}
        for key, join in self._active.items():
            self._logs[key] = IndexedLog(key, logs[join.log], list(join.key.items()), join.values, most)
            if isinstance(join, LabelJoin) and join.competes(config.example_id):
                self._next[key] = IndexedLog(key, impressions, list(zip(join.key, join.key, strict=True)), (), most)

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of the impressions that are joined on."""
        keys: dict[str, None] = {}
        for join in self._active.values():
            keys |= dict.fromkeys(join.key)
        return tuple(keys)

    def columns(self, database: Database, slab: Slab, complete: Completeness) -> Iterator[tuple[str, pa.Array]]:
        """Yields the columns that the joins add, with their names.

        Args:
            complete: until when labels are known.
        """
        labels = self._config.label_columns()
        for key, join in self._active.items():
            asked = Asked(slab.time, [slab.keys[column] for column in join.key])
            if isinstance(join, LabelJoin):
                label = key.partition(".")[2]
                yield labels[label], self._label(key, join, database, asked, complete.labels_us[label])
            elif isinstance(join, AsOfJoin):
                newest = self._newest(key, database, asked, 1, join.keep)
                yield from zip(join.columns, _newest_values(newest), strict=True)
            elif isinstance(join, HistoryJoin):
                newest = self._newest(key, database, asked, join.max_length, join.keep)
                yield from zip(join.columns, _lists(newest, newest.index.values), strict=True)
                if join.times:
                    times = pa.array(newest.index.time_E).view(pa.timestamp("us"))
                    yield join.times, next(_lists(newest, [times]))

    def _newest(self, key: str, database: Database, asked: Asked, most: int, keep: timedelta | None) -> _Newest:
        """Finds the newest events before each impression."""
        keep_us = ANY_AGE_US if keep is None else min(microseconds(keep), ANY_AGE_US)
        runs = self._logs[key].runs(database, asked, *asked.bounds(-keep_us, 0))
        stop_A = runs.position(0)
        start_A = np.maximum(runs.position(-keep_us), stop_A - most)
        offsets = np.concatenate([[0], np.cumsum(stop_A - start_A)])
        # Position of each event in its history, for all histories in a vectorised step.
        within_H = np.arange(offsets[-1]) - np.repeat(offsets[:-1], stop_A - start_A)
        return _Newest(runs.index, np.repeat(start_A, stop_A - start_A) + within_H, offsets.astype(np.int32))

    def _label(self, key: str, join: LabelJoin, database: Database, asked: Asked, complete_us: int) -> pa.Array:
        """Returns the values of a label, null where it is not known."""
        within_us = min(microseconds(join.within), ANY_AGE_US)
        bounds = asked.bounds(0, within_us)
        runs = self._logs[key].runs(database, asked, *bounds)
        first_A = runs.position(0)
        credited_A = runs.position(within_us, after=True) > first_A
        if key in self._next:
            # An event counts for the last impression before it: the first event must come before the next impression.
            others = self._next[key].runs(database, asked, *bounds)
            next_A = others.position(0, after=True)
            has_next_A = credited_A & (next_A < others.stop_A)
            next_us = others.index.time_E[next_A[has_next_A]]
            credited_A[has_next_A] = runs.index.time_E[first_A[has_next_A]] < next_us
        value_A = np.zeros(credited_A.size, np.float64 if join.value else np.int8)
        value_A[credited_A] = 1
        if join.value:
            values = runs.index.values[0].cast(pa.float64())
            value_A[credited_A] = values.to_numpy(zero_copy_only=False)[first_A[credited_A]]
        has_keys_A = asked.time.is_valid().to_numpy(zero_copy_only=False)
        for column in asked.keys:
            has_keys_A = has_keys_A & column.is_valid().to_numpy(zero_copy_only=False)
        unknown_A = ~has_keys_A | (runs.time_A + within_us >= complete_us)
        return pa.array(value_A, mask=unknown_A, from_pandas=True)


def _newest_values(newest: _Newest) -> Iterator[pa.Array]:
    """Yields the values of each impression's newest event, null without an event."""
    has_event_A = np.diff(newest.offsets) > 0
    position_A = np.zeros(has_event_A.size, np.int64)
    position_A[has_event_A] = newest.positions
    indices = pa.array(position_A, mask=~has_event_A)
    for values in newest.index.values:
        yield values.take(indices)


def _lists(newest: _Newest, columns: Sequence[pa.Array]) -> Iterator[pa.Array]:
    """Yields a column of lists for each column of the events."""
    indices = pa.array(newest.positions)
    for values in columns:
        yield list_column(newest.offsets, values.take(indices))
