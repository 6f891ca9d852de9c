"""Hashes files while they are written, and turns the errors of a full disk into errors for the user."""

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
    """Describes a written file: path relative to the workspace, size, and checksum (XXH3, 128 bits)."""

    path: str
    bytes: int
    xxh3: str


class HashingWriter:
    """Writes to a binary file, and tracks the size and digest of the written bytes.

    Args:
        file: receives the bytes.
        path: path relative to the workspace.
        where: name of the file in error messages.
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
        with explain_full_disk(self._where, self.size):
            self._file.write(view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Flushes buffered data to the file system."""
        with explain_full_disk(self._where, self.size):
            self._file.flush()

    def sync(self) -> None:
        """Waits until all bytes, which were flushed, are on disk (fsync)."""
        with explain_full_disk(self._where, self.size):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Marks the writer as closed, because pyarrow closes its sink; the workspace closes the file."""
        self.closed = True

    def readable(self) -> bool:
        """Returns False: the file is write-only."""
        return False

    def writable(self) -> bool:
        """Returns True."""
        return True

    def seekable(self) -> bool:
        """Returns False, because bytes are hashed in the order in which they are written."""
        return False

    def record(self) -> FileRecord:
        """Describes the bytes written so far."""
        digest = self._digest.hexdigest()
        # 12 of 32 digits, 48 bits, in the name: only files of one model and window can collide.
        return FileRecord(self._path.replace("{digest}", digest[:12]), self.size, digest)


@contextmanager
def explain_full_disk(where: str, size: int | None = None) -> Iterator[None]:
    """Turns the error of a full disk into a RunError that names the file which did not fit.

    Args:
        where: name of the file.
        size: bytes of the file that were written before the error.

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
