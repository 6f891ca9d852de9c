"""Limits the unpacked size of compressed files, because a few kilobytes can hold gigabytes of a repeated letter."""

from __future__ import annotations

import io
from typing import IO, Any, cast

# Text of logs compresses to a tenth at best: five times that is no log.
_RATIO = 50
# Small files may be very repetitive, and 64 MiB fit into memory.
_AT_LEAST_BYTES = 64 << 20


class _Limited(io.RawIOBase):
    def __init__(self, unpacked: IO[bytes], most: int, label: str) -> None:
        self._unpacked = unpacked
        self._left = most
        self._label = label

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unpacked.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._label} unpacks to more than {_RATIO} times its size: this is no such file")
        buffer[: len(data)] = data
        return len(data)


def limited(unpacked: IO[bytes], packed_bytes: int, label: str) -> IO[bytes]:
    """Wraps an unpacking file so that it reads at most 50 times its packed size (64 MiB at least).

    The size is limited before parsing and independent of headers in the file.

    Args:
        label: name of the file in messages.

    Raises:
        ValueError: while reading, when there is more.
    """
    raw = _Limited(unpacked, max(_RATIO * packed_bytes, _AT_LEAST_BYTES), label)
    return cast(IO[bytes], io.BufferedReader(raw, 1 << 20))
