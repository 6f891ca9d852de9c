"""Packed files that unpack to no more than such files do: a few kilobytes can hold gigabytes of one letter."""

from __future__ import annotations

import io
from typing import IO, Any, cast

_RATIO = 50
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
    """A file that is read as it is unpacked, up to 50 times its packed size (64 MiB at least).

    Text of logs is packed to a tenth at best. What is read is bounded before it is parsed, whatever a header says.

    Args:
        label: what the message calls the file.

    Raises:
        ValueError: while reading, there is more.
    """
    raw = _Limited(unpacked, max(_RATIO * packed_bytes, _AT_LEAST_BYTES), label)
    return cast(IO[bytes], io.BufferedReader(raw, 1 << 20))
