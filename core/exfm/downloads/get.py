"""Gets the files of a public log into a folder, and records where they are from."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exfm.downloads.checksums import verify
from exfm.downloads.partial_file import SUFFIX, discard, finish
from exfm.downloads.progress import Progress, size_text
from exfm.downloads.transfer import PATIENCE, Patience, transfer
from exfm.downloads.unpacking import unpack
from exfm.errors import ConfigError, RunError
from exfm.interfaces.download import Download, RemoteFile

RECORD = "exfm-download.json"
"""Name of the file that says where the others of its folder are from."""


def get(download: Download, folder: Path, progress: Progress, patience: Patience = PATIENCE) -> list[Path]:
    """Gets the files of a log, those that are missing alone, and returns their paths.

    Raises:
        ConfigError: the folder cannot be created, or has a file of such a name that is not from here.
        RunError: a transfer, a checksum or an archive fails; no file has its final name then that is not complete.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"the folder {folder} cannot be created: {error.strerror}") from error
    record = _Record(folder, download)
    missing: list[RemoteFile] = []
    for file in download.files:
        if record.has(file):
            progress.say(f"{file.name}: is complete in {folder} already")
        else:
            record.check_free_names(file)
            missing.append(file)
    # For all files together, because a transfer looks at the room for its own file alone.
    _check_space(missing, folder)
    for file in missing:
        part_path = folder / f"{file.name}{SUFFIX}"
        transfer(file, part_path, progress, patience)
        # Before the file gets its name or is unpacked: damaged bytes must not replace anything.
        sha256 = verify(file, part_path, progress)
        if file.members:
            unpack(part_path, file.url, file.members, folder, progress)
            discard(part_path)
        else:
            finish(part_path, folder / file.name)
        # After each file, so that an interrupted download goes on with the files that are missing.
        record.add(file, sha256)
    paths: list[Path] = []
    for file in download.files:
        paths += [folder / name for name in file.kept]
    return paths


def _check_space(files: list[RemoteFile], folder: Path) -> None:
    """Raises a RunError if the disk is too small for files of published sizes, before the first is transferred."""
    needed = 0
    for file in files:
        part_path = folder / f"{file.name}{SUFFIX}"
        needed += file.size or 0
        # Bytes of an interrupted transfer lie on the disk already.
        if part_path.exists():
            needed -= part_path.stat().st_size
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RunError(
            f"{folder} has {size_text(free)} free, and the download takes {size_text(needed)}; free some, or choose a "
            "folder on another disk with --to"
        )


class _Record:
    """Reads and writes the file that says where the files of a folder are from."""

    def __init__(self, folder: Path, download: Download) -> None:
        self._folder = folder
        self._path = folder / RECORD
        self._download = download
        self._files: dict[str, Any] = {}
        try:
            self._files = json.loads(self._path.read_text(encoding="utf-8"))["files"]
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} cannot be read: {error}; remove it with the files of the folder"
            ) from error

    def has(self, file: RemoteFile) -> bool:
        """Tells whether all files that are kept of a remote file are here, with the sizes of their download."""
        # By size and not by checksum, because hashing gigabytes at every call would take minutes.
        kept: dict[str, int] = self._files.get(file.url, {}).get("kept", {})
        return bool(kept) and all(self._size(name) == size for name, size in kept.items())

    def check_free_names(self, file: RemoteFile) -> None:
        """Raises a ConfigError if a file would be replaced that is not from here."""
        # An earlier download has written these files, so that a new version may replace them.
        if file.url in self._files:
            return
        for name in file.kept:
            if self._size(name) is not None:
                raise ConfigError(
                    f"{self._folder / name} is there already, and `exfm data get` has not written it; move it away, or "
                    "choose another folder with --to"
                )

    def add(self, file: RemoteFile, sha256: str) -> None:
        """Records a complete file."""
        kept = {name: self._size(name) for name in file.kept}
        time = datetime.now(UTC).isoformat(timespec="seconds")
        self._files[file.url] = {"sha256": sha256, "time": time, "kept": kept}
        text = json.dumps(
            {
                "name": self._download.name,
                "title": self._download.title,
                "licence": self._download.licence,
                "home": self._download.home,
                "files": self._files,
            },
            indent=1,
        )
        # Renamed into place, because half a record could not be read, and would stop every later download.
        temporary = self._path.with_name(f".{RECORD}.{os.getpid()}")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(self._path)

    def _size(self, name: str) -> int | None:
        path = self._folder / name
        return path.stat().st_size if path.is_file() else None
