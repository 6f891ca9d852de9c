"""Files and folders that are not finished: a later start can tell those whose writer has died, and removes them.

A name says which machine and which process writes it, and the writer holds a lock (``flock``) on it that ends with the
process, however that ends. What was written on another machine, where a lock need not be seen, goes by its age.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

_NAME = re.compile(r"\.exfm\.(?:(?P<machine>[^.]+)\.(?P<process>[0-9a-f]{12})\.)?[^.]+\.tmp")
_PROCESS = uuid.uuid4().hex[:12]

_OLD_S = 24 * 3600
"""A file of another machine that nobody has written to for so long has no writer: a chunk's rows come sooner."""

_TRIES = 100
"""How often a folder is made again that others remove, as they do with a snapshot's that nobody can ask for."""


@contextmanager
def temporary_file(folder: str, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write in a folder, which is made where there is none; at the end it is gone, unless it was renamed.

    Args:
        folder: on a local disk.
        mode: permissions, of which the umask takes some.
    """
    file = _open(folder, mode)
    try:
        yield file
        file.close()
    finally:
        with suppress(OSError):  # of a full disk; what has failed on it before is the better message
            file.close()
        Path(file.name).unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: str, mode: int = 0o700) -> Iterator[Path]:
    """A folder to fill; at the end it is gone, unless it was renamed."""
    path = Path(parent, _new_name())
    path.mkdir(mode=mode)
    lock = os.open(path, os.O_RDONLY)
    try:
        _locked(lock)
        yield path
    finally:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)


def spool_folder() -> str:
    """Where files are kept that go to an object store, or come from it."""
    return tempfile.gettempdir()


def sweep(folder: str) -> None:
    """Removes what processes that have died have left unfinished in a folder."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is not None and name["process"] != _PROCESS:
                with suppress(OSError):  # it belongs to another user, or somebody else removes it just now
                    _remove_orphan(Path(entry.path), name["machine"] == _machine())


def _open(folder: str, mode: int) -> BinaryIO:
    for _ in range(_TRIES):
        path = Path(folder, _new_name())
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(mode, exist_ok=False)
            file = path.open("r+b")
        except FileNotFoundError:  # the folder was removed just now
            continue
        if _locked(file.fileno()) and path.exists():
            return file
        file.close()  # a start of another process has seen it before it was locked
        path.unlink(missing_ok=True)
    raise OSError(f"{folder}: no file can be kept here: others remove it")


def _locked(descriptor: int) -> bool:
    """Locks a file for as long as it is open; False where somebody else has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks: the age decides
        return True
    return True


def _remove_orphan(path: Path, same_machine: bool) -> None:
    is_folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError:
            same_machine = False
        if same_machine or time.time() - os.fstat(descriptor).st_mtime > _OLD_S:
            if is_folder:
                shutil.rmtree(path)
            else:
                path.unlink()
    finally:
        os.close(descriptor)


def _new_name() -> str:
    return f".exfm.{_machine()}.{_PROCESS}.{uuid.uuid4().hex[:12]}.tmp"


@cache
def _machine() -> str:
    """This machine since it was started: two of one name, such as containers, do not share it."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        started = ""
    return re.sub("[^A-Za-z0-9-]", "-", f"{socket.gethostname()}-{started}")
