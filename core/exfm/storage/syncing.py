"""Waits until the data of many files is on disk, at the same time for all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

_THREADS = 8
"""Files that are waited for at once: a journal stores the changes of all of them together."""


def sync_all(paths: Sequence[str]) -> None:
    """Waits until the data of files on a local disk is stored; passes over a file that does not exist.

    Another job that has committed the same window may have removed it, and then no manifest can name it any more.
    """
    if len(paths) < 2:
        for path in paths:
            _sync(path)
        return
    with ThreadPoolExecutor(min(_THREADS, len(paths)), "syncing") as threads:
        for _ in threads.map(_sync, paths):
            pass


def _sync(path: str) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
