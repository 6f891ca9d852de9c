"""The entries of a Redis stream, and what the broker knows of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One entry: its id as the broker writes it, when it was appended in milliseconds, and the bytes of its field."""

    id: str
    appended_ms: int
    value: bytes | None


@dataclass(frozen=True)
class Extent:
    """What a stream holds now: when its first and its newest entry were appended, and whether older ones are gone."""

    first_ms: int
    newest_ms: int
    trimmed: bool


class Entries:
    """A stream at a broker.

    Args:
        url: the broker, such as ``redis://host:6379/0``.
        key: the stream's name.
        field: the field of an entry that holds its row.
        page: how many entries are asked for at once.
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
        """What it holds now; None where it holds nothing.

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
        newest = _milliseconds(info["last-generated-id"])
        return Extent(_milliseconds(first[0]), newest, info["entries-added"] > info["length"])

    def next_ms(self, first_ms: int) -> int | None:
        """When the first entry was appended that was not appended before ``first_ms``; None where there is none."""
        try:
            found = self._redis.xrange(self._key, f"{max(first_ms, 0)}-0", count=1)
        except self._error as error:
            raise self._explained(error) from error
        return _milliseconds(found[0][0]) if found else None

    def between(self, first_ms: int, end_ms: int) -> Iterator[list[Entry]]:
        """Pages of the entries that were appended from ``first_ms`` on and before ``end_ms``, in order."""
        start = f"{max(first_ms, 0)}-0"
        while end_ms > 0:
            try:
                # An end without a sequence number is the last entry of that millisecond.
                found = self._redis.xrange(self._key, start, str(end_ms - 1), count=self._page)
            except self._error as error:
                raise self._explained(error) from error
            page = [Entry(id.decode(), _milliseconds(id), fields.get(self._field)) for id, fields in found]
            if page:
                yield page
            if len(page) < self._page:
                return
            start = f"({page[-1].id}"

    def _explained(self, error: Exception) -> ValueError:
        return ValueError(f"redis_stream: the stream {self._key!r} cannot be read: {error}")


def _milliseconds(entry_id: bytes | str) -> int:
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    return int(text.partition("-")[0])
