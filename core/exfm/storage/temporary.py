"""Creates temporary files and folders, and removes those whose writers have died.

A name contains the machine and the process of its writer, and the writer holds a lock (``flock``) that the system
releases when the process ends. Locks need not be visible to other machines, so their files are removed by age.
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
"""Age from which a file of another machine counts as abandoned: a live writer appends a chunk's rows more often."""

_TRIES = 100
"""Attempts to create a file in a folder that other processes remove, such as the folder of a retired snapshot."""


@contextmanager
def temporary_file(folder: str, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a new file for writing, and removes it at the end unless it was renamed.

    Args:
        folder: folder on a local disk, created if it does not exist.
        mode: permissions before the umask is applied.
    """
    file = _open(folder, mode)
    try:
        yield file
        file.close()
    finally:
        # Closing flushes, which fails again on a full disk: the first failure has the better message.
        with suppress(OSError):
            file.close()
        Path(file.name).unlink(missing_ok=True)


@contextmanager
def temporary_folder(parent: str, mode: int = 0o700) -> Iterator[Path]:
    """Creates a folder, and removes it at the end unless it was renamed."""
    path = Path(parent, _new_name())
    path.mkdir(mode=mode)
    lock = os.open(path, os.O_RDONLY)
    try:
        _locked(lock)
        yield path
    finally:
        os.close(lock)
        shutil.rmtree(path, ignore_errors=True)


def make_folder(folder: str) -> None:
    """Creates a folder and its parents, unless they exist, while other processes may be removing them.

    Raises:
        FileExistsError: a file has the name of the folder.
        FileNotFoundError: a parent is removed again and again.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            return
        except (FileExistsError, FileNotFoundError):
            # mkdir has seen that the folder exists, and has looked at it again after another process removed it.
            if attempt == _TRIES or (os.path.lexists(folder) and not Path(folder).is_dir()):
                raise


def spool_folder() -> str:
    """Returns the local folder for files on their way to an object store or from it."""
    return tempfile.gettempdir()


def sweep(folder: str) -> None:
    """Removes from a folder the unfinished files and folders of processes that have died."""
    with suppress(FileNotFoundError, NotADirectoryError, PermissionError), os.scandir(folder) as entries:
        for entry in entries:
            name = _NAME.fullmatch(entry.name)
            if name is not None and name["process"] != _PROCESS:
                # It may belong to another user, or another process may be removing it.
                with suppress(OSError):
                    _remove_orphan(Path(entry.path), name["machine"] == machine_name())


def _open(folder: str, mode: int) -> BinaryIO:
    for _ in range(_TRIES):
        path = Path(folder, _new_name())
        make_folder(folder)
        try:
            path.touch(mode, exist_ok=False)
            file = path.open("r+b")
        except FileNotFoundError:  # another process has just removed the folder
            continue
        except BaseException:  # also an interruption, which leaves no file behind
            path.unlink(missing_ok=True)
            raise
        # Check after locking: between creating and locking, a sweep of another process takes the file for abandoned.
        if _locked(file.fileno()) and path.exists():
            return file
        file.close()
        path.unlink(missing_ok=True)
    raise OSError(f"{folder}: no file can be kept here: others remove it")


def _locked(descriptor: int) -> bool:
    """Locks a file for as long as it is open; returns False if another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks: a sweep goes by age
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
        except OSError:  # no locks here: being on the same machine does not show that the writer is dead
            same_machine = False
        if same_machine or time.time() - os.fstat(descriptor).st_mtime > _OLD_S:
            if is_folder:
                shutil.rmtree(path)
            else:
                path.unlink()
    finally:
        os.close(descriptor)


def _new_name() -> str:
    return f".exfm.{machine_name()}.{_PROCESS}.{uuid.uuid4().hex[:12]}.tmp"


@cache
def machine_name() -> str:
    """Returns the host's name with its boot id, which differs for machines of equal names, and after a restart."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    except OSError:
        started = ""
    return re.sub("[^A-Za-z0-9-]", "-", f"{socket.gethostname()}-{started}")
