"""Reads the entries of a Redis stream, and the extent of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Holds an entry: its id, the time of appending in milliseconds, and the bytes of its field."""

    id: str
    appended_ms: int
    value: bytes | None


@dataclass(frozen=True)
class Extent:
    """Describes the present entries: times of the first and the newest, and whether older entries were trimmed."""

    first_ms: int
    newest_ms: int
    trimmed: bool


class Entries:
    """Reads a stream from a broker.

    Args:
        url: the broker, such as ``redis://host:6379/0``.
        key: the stream's name.
        field: the field of an entry that holds its row.
        page: number of entries per request.
    """

    def __init__(self, url: str, key: str, field: str, page: int) -> None:
        try:
            import redis
        except ModuleNotFoundError as error:
            raise ValueError("redis_stream needs the package redis: pip install 'exfm[redis]'") from error
        self._error = redis.RedisError
        self._redis: Any = redis.Redis.from_url(url)
        self._key = key
        self._field = field.encode()
        self._page = page

    def extent(self) -> Extent | None:
        """Returns the present extent of the stream; None if it has no entries.

        Raises:
            ValueError: the broker cannot be reached, or the key is no stream.
        """
        try:
            if not self._redis.exists(self._key):
                return None
            info = self._redis.xinfo_stream(self._key)
        except self._error as error:
            raise self._explained(error) from error
        first = info["first-entry"]
        if first is None:
            return None
        # The last generated id is that of the newest entry even if that entry was deleted.
        newest = _milliseconds(info["last-generated-id"])
        return Extent(_milliseconds(first[0]), newest, info["entries-added"] > info["length"])

    def next_ms(self, first_ms: int) -> int | None:
        """Returns the time of the first entry appended at ``first_ms`` or later; None if there is no such entry."""
        try:
            entries = self._redis.xrange(self._key, f"{max(first_ms, 0)}-0", count=1)
        except self._error as error:
            raise self._explained(error) from error
        return _milliseconds(entries[0][0]) if entries else None

    def between(self, first_ms: int, end_ms: int) -> Iterator[list[Entry]]:
        """Yields pages of the entries appended from ``first_ms`` until before ``end_ms``, in order."""
        start = f"{max(first_ms, 0)}-0"
        while end_ms > 0:
            try:
                # An end without a sequence number includes all entries of that millisecond.
                entries = self._redis.xrange(self._key, start, str(end_ms - 1), count=self._page)
            except self._error as error:
                raise self._explained(error) from error
            page = [Entry(id.decode(), _milliseconds(id), fields.get(self._field)) for id, fields in entries]
            if page:
                yield page
            if len(page) < self._page:
                return
            start = f"({page[-1].id}"  # a parenthesis excludes the entry itself

    def _explained(self, error: Exception) -> ValueError:
        return ValueError(f"redis_stream: the stream {self._key!r} cannot be read: {error}")


def _milliseconds(entry_id: bytes | str) -> int:
    if isinstance(entry_id, bytes):
        entry_id = entry_id.decode()
    return int(entry_id.partition("-")[0])
