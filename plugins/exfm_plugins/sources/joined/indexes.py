"""Keeps sorted events of a log, because the histories of successive windows consist of nearly the same events."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from exfm_plugins.sources.joined.events import EventLog
from exfm_plugins.sources.joined.plain import check_key
from exfm_plugins.sources.joined.queries import Asked, Database, EventIndex, Events, Runs

logger = logging.getLogger(__name__)

# Logs with events that cannot be joined, so that each is named in a single warning.
_INCOMPLETE_EVENTS: set[tuple[str, str]] = set()

_AHEAD = 4
"""Events of a quarter of the time that is asked for are sorted ahead: each event is sorted five times."""


@dataclass(frozen=True)
class _Kept:
    """An index of the events between two times, both included, and the version of their files."""

    index: EventIndex
    first_us: int
    last_us: int
    version: str

    def covers(self, log: EventLog, first_us: int, last_us: int) -> bool:
        """Tells whether it has all events between two times, as the log's files are now."""
        is_inside = self.first_us <= first_us and last_us <= self.last_us
        return is_inside and self.version == log.version(self.first_us, self.last_us)


class IndexedLog:
    """Finds the events of impressions in a log, by keys and time.

    Args:
        location: key path of the join, with which messages begin.
        log: the log.
        pairs: the columns of the impressions, and those of the log that are equal to them.
        values: the columns of the values, which decide the order of events of equal key and time.
        most: how many indexes are kept: late labels are read in turn with the windows before them.
    """

    def __init__(
        self, location: str, log: EventLog, pairs: Sequence[tuple[str, str]], values: Sequence[str], most: int
    ) -> None:
        self._location = location
        self._log = log
        self._pairs = pairs
        self._values = values
        self._most = most
        self._kept: list[_Kept] = []
        # Several threads may read a stream.
        self._lock = threading.Lock()

    def runs(self, database: Database, asked: Asked, first_us: int, last_us: int) -> Runs:
        """Finds the events of each impression's keys, at least those between two times, both included.

        Raises:
            ValueError: the types of a key differ.
        """
        index = self._covering(database, first_us, last_us)
        keys: list[pa.Array] = []
        for (name, column), values, kind in zip(self._pairs, asked.keys, index.key_types, strict=True):
            if pa.types.is_null(values.type):
                values = values.cast(kind)
            if kind != values.type and not pa.types.is_null(kind):
                raise ValueError(
                    f"joined: {self._location}.key: {name!r} is {values.type} in the impressions and {column!r} {kind} "
                    "in the log; write both with the same type"
                )
            keys.append(values)
        return database.runs(Asked(asked.time, keys), index)

    def _covering(self, database: Database, first_us: int, last_us: int) -> EventIndex:
        """Returns an index of the events between two times, kept or new."""
        bounds = self._log.bounds()
        if bounds is not None:
            # No further than the log goes, so that an index of the whole log has any time.
            first_us, last_us = max(first_us, bounds[0]), min(last_us, bounds[1])
        with self._lock:
            kept = next((kept for kept in self._kept if kept.covers(self._log, first_us, last_us)), None)
            if kept is None:
                if bounds is not None and last_us > first_us:
                    # Events ahead, because the next window asks for them.
                    last_us = min(last_us + (last_us - first_us) // _AHEAD, bounds[1])
                index = database.sort(self._events(first_us, last_us), first_us, last_us)
                kept = _Kept(index, first_us, last_us, self._log.version(first_us, last_us))
            # The index that was used longest ago is dropped.
            self._kept = [kept, *(other for other in self._kept if other is not kept)][: self._most]
            return kept.index

    def _events(self, first_us: int, last_us: int) -> Events:
        """Reads events, and says once that some have no time or no key."""
        log = self._log.read(first_us, last_us)
        keys: list[pa.ChunkedArray] = []
        missing: list[str] = []
        if log.time.null_count:
            missing.append(f"{log.time.null_count} of {len(log.time)} events have no time")
        for _, column in self._pairs:
            values = log.columns[column]
            check_key(values, f"joined: {self._location}.key: column {column!r} of the log")
            if values.null_count:
                missing.append(f"{values.null_count} of {len(values)} events have no {column}")
            keys.append(values)
        if missing and (self._log.url, self._location) not in _INCOMPLETE_EVENTS:
            _INCOMPLETE_EVENTS.add((self._log.url, self._location))
            logger.warning("joined: %s: %s; they are joined to nothing", self._location, ", ".join(missing))
        return Events(log.time, keys, [log.columns[column] for column in self._values])
