"""Creates a small file on a disk atomically, unless it exists: of concurrent writers a single writer succeeds.

A hard link does this in a single step. On file systems without links (vfat, SMB, many under FUSE), writers compete by
renaming a folder, because these file systems do not replace a folder that is not empty. The winner's file is then
moved out of the folder. Any process that finds such a folder, after a crash or concurrently with its writer, may move
the file, because the file in each folder has a different name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from exfm.storage.temporary import temporary_file, temporary_folder

_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
_FOLDER_EXISTS = {errno.ENOTEMPTY, errno.EEXIST}
_PREFIX, _SUFFIX = ".exfm.", ".won"
_TRIES = 100  # each failed try means that another writer has made progress, so a few suffice


@contextmanager
def prepared_file(target: str, data: bytes) -> Iterator[BinaryIO]:
    """Writes a hidden file beside the target, for ``create_file``; the caller waits until its data is on disk."""
    with temporary_file(str(Path(target).parent)) as file:
        file.write(data)
        file.flush()
        yield file


def create_file(prepared: BinaryIO, target: str, data: bytes) -> bool:
    """Creates a file from a prepared file with the data and returns True, or returns False if it exists."""
    path = Path(target)
    try:
        os.link(prepared.name, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    else:
        return True
    return _create_without_links(path, data)


def finish_creations(folder: str) -> None:
    """Completes the files of a folder that writers had won the right to create before they died."""
    with suppress(FileNotFoundError):
        for won in list(Path(folder).glob(f"{_PREFIX}*{_SUFFIX}")):
            _finish(won, won.with_name(won.name.removeprefix(_PREFIX).removesuffix(_SUFFIX)))


def _create_without_links(target: Path, data: bytes) -> bool:
    won = target.with_name(f"{_PREFIX}{target.name}{_SUFFIX}")
    for _ in range(_TRIES):
        if target.exists():
            return False
        with temporary_folder(str(target.parent), 0o777) as folder, (folder / folder.name).open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            try:
                folder.rename(won)
            except OSError as error:
                # The error of an existing folder differs between file systems: look at the folder itself, too.
                if error.errno not in _FOLDER_EXISTS and not won.is_dir():
                    raise
                _finish(won, target)
                continue
            _finish(won, target)
            # Another process may have moved an earlier winner's file to the target meanwhile.
            return _is_same_file(file.fileno(), target)
    raise OSError(f"{target}: cannot be created: others remove what is written")


def _finish(won: Path, target: Path) -> None:
    """Moves the winner's file to the target, or removes it if an earlier winner has already created the target."""
    with suppress(FileNotFoundError):
        for file in list(won.iterdir()):
            with suppress(FileNotFoundError):
                # Check after listing: if the target exists now, this file's writer won after the target was created.
                if target.exists():
                    file.unlink()
                else:
                    file.rename(target)
    with suppress(OSError):  # the folder may already hold the file of another winner
        won.rmdir()


def _is_same_file(descriptor: int, path: Path) -> bool:
    opened = os.fstat(descriptor)
    with suppress(FileNotFoundError):
        return os.path.samestat(opened, path.stat())
    return False
