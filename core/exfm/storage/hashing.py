"""What is written, with its size and its checksum, and what becomes of a disk that is full."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

import xxhash

from exfm.errors import RunError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class FileRecord:
    """A written file: path relative to the workspace, size, and checksum (XXH3, 128 bits)."""

    path: str
    bytes: int
    xxh3: str


class HashingWriter:
    """A binary file that keeps size and digest of what is written to it.

    Args:
        file: takes the bytes.
        path: relative to the workspace.
        where: what an error calls it.
    """

    def __init__(self, file: IO[bytes], path: str, where: str) -> None:
        self._file = file
        self._path = path
        self._where = where
        self._digest = xxhash.xxh3_128()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Writes bytes or a buffer.

        Raises:
            RunError: the disk is full.
        """
        view = memoryview(data)
        with naming_a_full_disk(self._where, self.size):
            self._file.write(view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Passes data on to the file system."""
        with naming_a_full_disk(self._where, self.size):
            self._file.flush()

    def sync(self) -> None:
        """Has the file system store all of it."""
        self.flush()
        with naming_a_full_disk(self._where, self.size):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Marks the writer closed; the workspace closes the file."""
        self.closed = True

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never."""
        return False

    def record(self) -> FileRecord:
        """What was written."""
        digest = self._digest.hexdigest()
        return FileRecord(self._path.replace("{digest}", digest[:12]), self.size, digest)


@contextmanager
def naming_a_full_disk(where: str, size: int | None = None) -> Iterator[None]:
    """Turns the error of a full disk into one that says which file did not fit.

    Args:
        where: the file.
        size: bytes of it that had been written before.

    Raises:
        RunError: the disk is full, or a quota is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        so_far = "" if size is None else f" after {size:,} bytes"
        raise RunError(
            f"{where}: {os.strerror(error.errno)}{so_far}. What is committed is kept: make room, and the same command "
            "goes on from there; `exfm plan CONFIG` says how large tables and their optimizer are"
        ) from error
