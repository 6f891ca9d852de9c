"""Creates a small file on a disk, whole and unless it exists: of several writers at once exactly one succeeds.

A hard link does it in one step. File systems without links (vfat, SMB, many under FUSE) cannot replace a folder that
holds something: there, writers compete by renaming a folder, and the winner's file is then moved out of it. Whoever
comes upon such a folder, after a crash or beside its owner, may move the file too: each has a name of its own.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from exfm.storage.temporary import temporary_file, temporary_folder

_NO_LINKS = {errno.EPERM, errno.EACCES, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}
_THERE = {errno.ENOTEMPTY, errno.EEXIST}
_PREFIX, _SUFFIX = ".exfm.", ".won"
_TRIES = 100


def create_file(target: str, data: bytes) -> bool:
    """Creates a file, unless it exists; says whether it did."""
    path = Path(target)
    with temporary_file(str(path.parent)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        try:
            os.link(file.name, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
        else:
            return True
        return _create_without_links(path, data)


def finish_creations(folder: str) -> None:
    """Completes what writers had won before they died."""
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
                if error.errno not in _THERE and not won.is_dir():
                    raise
                _finish(won, target)
                continue
            _finish(won, target)
            return _is(file.fileno(), target)
    raise OSError(f"{target}: cannot be created: others remove what is written")


def _finish(won: Path, target: Path) -> None:
    """Moves the winner's file to its place, unless an earlier winner has been there and has removed its folder."""
    with suppress(FileNotFoundError):
        for held in list(won.iterdir()):
            with suppress(FileNotFoundError):
                if target.exists():  # asked after the listing: the file is then known to have come too late
                    held.unlink()
                else:
                    held.rename(target)
    with suppress(OSError):  # another winner's may be there already
        won.rmdir()


def _is(descriptor: int, path: Path) -> bool:
    own = os.fstat(descriptor)
    with suppress(FileNotFoundError):
        return os.path.samestat(own, path.stat())
    return False
