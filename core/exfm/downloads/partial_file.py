"""Keeps the bytes of a transfer until it is complete, with the version of the server's file that they belong to."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from exfm.errors import RunError

SUFFIX = ".part"


class PartialFile:
    """An incomplete file on a local disk.

    The version stands in a second file beside it, so that another process can go on after this process has died.

    Attributes:
        path: the incomplete file, whose name ends in ``.part``.
        size: its bytes.
        validator: the ETag, or the time of change, that names the version of the server's file; empty if it has none.
        total: bytes of the complete file; None if the server does not say.
    """

    def __init__(self, path: Path, url: str, file: BinaryIO) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self.validator = ""
        self.total: int | None = None
        self._url = url
        self._file = file
        self._read_version()

    @classmethod
    @contextmanager
    def open(cls, path: Path, url: str) -> Iterator[PartialFile]:
        """Opens or creates a file for this process alone.

        Raises:
            RunError: another process writes it.
        """
        # Appending, so that the file is created without truncating what an earlier process has left.
        with path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunError(f"{path} is being written by another process; wait for it, or end it") from None
            yield cls(path, url, file)
            file.flush()
            os.fsync(file.fileno())

    @property
    def is_complete(self) -> bool:
        """Tells whether all bytes are here."""
        return self.total is not None and self.size == self.total

    def restart(self, validator: str, total: int | None) -> None:
        """Removes all bytes, and records the version of the bytes that follow."""
        # Bytes go before their version: a crash in between leaves an empty file, and never bytes of another version.
        self._file.truncate(0)
        self.size, self.validator, self.total = 0, validator, total
        version = {"url": self._url, "validator": validator, "total": total}
        _version_path(self.path).write_text(json.dumps(version), encoding="utf-8")

    def write(self, data: bytes) -> None:
        """Appends bytes."""
        self._file.write(data)
        self.size += len(data)

    def _read_version(self) -> None:
        """Reads the version of the bytes; forgets bytes of another address, or of no version."""
        try:
            version = json.loads(_version_path(self.path).read_text(encoding="utf-8"))
            is_same = version["url"] == self._url
            validator, total = str(version["validator"]), version["total"]
        except (OSError, ValueError, KeyError, TypeError):
            is_same, validator, total = False, "", None
        if is_same and (total is None or isinstance(total, int)):
            self.validator, self.total = validator, total
        elif self.size:
            self._file.truncate(0)
            self.size = 0


def discard(path: Path) -> None:
    """Removes an incomplete file and the record of its version."""
    path.unlink(missing_ok=True)
    _version_path(path).unlink(missing_ok=True)


def finish(path: Path, name: Path) -> None:
    """Gives a complete file its final name."""
    # The record goes last: after a crash in between it describes no bytes, which harms nothing.
    path.replace(name)
    _version_path(path).unlink(missing_ok=True)


def _version_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
