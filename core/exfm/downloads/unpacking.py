"""Unpacks archives of which nothing is known: the files that are expected, by name alone, and nothing else.

Files are written under names of the catalogue and never under those of the archive. An archive with a name that leads
out of its folder is refused, because no release has such names.
"""

from __future__ import annotations

import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from exfm.downloads.partial_file import SUFFIX
from exfm.downloads.progress import Progress, size_text
from exfm.errors import RunError

_AT_ONCE = 1 << 20
_RATIO = 200
"""Unpacked bytes for each byte of an archive; released logs have up to a tenth of it."""
_AT_LEAST_BYTES = 64 << 20
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class _Member:
    """A file in an archive; ``open`` returns None where it is none, such as a link or a folder."""

    name: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, label: str, names: Sequence[str], folder: Path, progress: Progress) -> None:
    """Unpacks the files of an archive that have these names, in any of its folders, into a single folder.

    Files get their names when all of them are complete.

    Args:
        label: the name of the archive in messages.

    Raises:
        RunError: it is no .zip, .tar or .tar.gz, or is damaged; a name leads out of the archive; a file is missing,
            comes twice, or is a link; the files are too large for the disk, or for an archive of this size.
    """
    budget = _Budget(label, max(_RATIO * archive.stat().st_size, _AT_LEAST_BYTES), folder)
    written: dict[str, Path] = {}
    try:
        with _members(archive, label) as members:
            for member in members:
                name = _base_name(member.name, label)
                budget.take(member.size)
                if name not in names:
                    continue
                if name in written:
                    raise RunError(f"{label}: two of its files are called {name!r}")
                written[name] = folder / f"{name}{SUFFIX}"
                _write(member, name, label, written[name], progress)
        missing = [name for name in names if name not in written]
        if missing:
            raise RunError(f"{label} has no file {missing[0]!r}: its publisher may have changed the release")
        # After the last, so that a damaged archive replaces none of the files.
        for name, path in written.items():
            path.replace(folder / name)
    except _DAMAGE as error:
        raise RunError(f"{label} is damaged: {error}") from error
    finally:
        for path in written.values():
            path.unlink(missing_ok=True)


class _Budget:
    """Limits the sizes that an archive names, because a few kilobytes can hold gigabytes of a repeated letter."""

    def __init__(self, label: str, most: int, folder: Path) -> None:
        self._label = label
        self._most = most
        self._folder = folder
        self._taken = 0

    def take(self, size: int) -> None:
        self._taken += size
        if self._taken > self._most:
            raise RunError(f"{self._label} unpacks to more than {_RATIO} times its size: this is no such file")
        free = shutil.disk_usage(self._folder).free
        if size > free:
            raise RunError(
                f"{self._folder} has {size_text(free)} free, and a file of {self._label} takes {size_text(size)}; free "
                "some, or choose a folder on another disk with --to"
            )


def _base_name(name: str, label: str) -> str:
    """Returns the last name of a path in an archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
        raise RunError(f"{label}: the name {name!r} leads out of the archive; nothing of it is kept")
    return path.name


def _write(member: _Member, name: str, label: str, path: Path, progress: Progress) -> None:
    opened = member.open()
    if opened is None:
        raise RunError(f"{label}: {member.name!r} is a link or a folder, and no file")
    progress.begin(f"unpacking {name}", 0, member.size)
    with opened, path.open("wb") as file:
        # Readers of both formats end at the size in the header, which the budget has counted.
        while data := opened.read(_AT_ONCE):
            file.write(data)
            progress.advance(len(data))


@contextmanager
def _members(archive: Path, label: str) -> Iterator[Iterator[_Member]]:
    """Opens an archive, and yields its members in order."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened_zip:
            yield _zip_members(opened_zip)
    elif tarfile.is_tarfile(archive):
        with _uncompressed(archive) as stream:
            # As a stream, because a compressed archive cannot be read backwards.
            with tarfile.open(fileobj=stream, mode="r|") as opened_tar:
                yield _tar_members(opened_tar)
            # To the end, where gzip has its checksum.
            while stream.read(_AT_ONCE):
                pass
    else:
        raise RunError(f"{label} is neither a .zip nor a .tar or .tar.gz: its publisher may have changed the release")


def _uncompressed(archive: Path) -> IO[bytes]:
    """Opens a file, through gzip where it begins as gzip's files do."""
    with archive.open("rb") as file:
        # By content, because names of archives are the publisher's.
        is_gzip = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(archive)) if is_gzip else archive.open("rb")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():

        def open_file(info: zipfile.ZipInfo = info) -> IO[bytes] | None:
            # The upper half of the attributes has the file's mode where a Unix system has packed it.
            is_link = stat.S_ISLNK(info.external_attr >> 16)
            return None if info.is_dir() or is_link else archive.open(info)

        yield _Member(info.filename, info.file_size, open_file)


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:

        def open_file(info: tarfile.TarInfo = info) -> IO[bytes] | None:
            return archive.extractfile(info) if info.isreg() else None

        yield _Member(info.name, info.size, open_file)
