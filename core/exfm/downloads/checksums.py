"""Verifies downloaded files by their published checksums, or else by those of the first download on this account."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from exfm.downloads.partial_file import discard
from exfm.downloads.progress import Progress
from exfm.errors import RunError
from exfm.interfaces.download import RemoteFile

_AT_ONCE = 1 << 20


def verify(file: RemoteFile, path: Path, progress: Progress) -> str:
    """Verifies a downloaded file, and returns its SHA-256.

    A file without a published checksum is trusted at its first download: its checksum is recorded in the user's cache
    folder, and a later download of this account has to have the same.

    Raises:
        RunError: the checksum differs. A file that differs from its published checksum is removed, as it is of no use.
    """
    digests = _digests(file, path, progress)
    if file.checksum is not None:
        actual = digests[file.checksum.algorithm]
        if actual != file.checksum.digest:
            discard(path)
            raise RunError(
                f"{file.url}: the {file.checksum.algorithm} of the transferred file is {actual}, and "
                f"{file.checksum.published} has published {file.checksum.digest}: it was damaged on its path, or is "
                "another file; it is removed, and the same command transfers it anew"
            )
        progress.say(f"{file.name}: its {file.checksum.algorithm} is that published by {file.checksum.published}")
        return digests["sha256"]
    _trust(file, digests["sha256"], progress)
    return digests["sha256"]


def _digests(file: RemoteFile, path: Path, progress: Progress) -> dict[str, str]:
    """Computes the SHA-256 of a file, and the published checksum's algorithm, in a single pass."""
    names = {"sha256"}
    if file.checksum is not None:
        names.add(file.checksum.algorithm)
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in names}
    progress.begin(f"checking {file.name}", 0, path.stat().st_size)
    with path.open("rb") as opened:
        while data := opened.read(_AT_ONCE):
            for computed in hashes.values():
                computed.update(data)
            progress.advance(len(data))
    return {name: computed.hexdigest() for name, computed in hashes.items()}


def _trust(file: RemoteFile, sha256: str, progress: Progress) -> None:
    """Compares a checksum with that of the first download, or records it."""
    path = _record_path()
    try:
        first: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        first = {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path}, with the checksums of first downloads, cannot be read: {error}; mend it") from error
    before = first.get(file.url)
    if before is None:
        first[file.url] = sha256
        path.parent.mkdir(parents=True, exist_ok=True)
        # Under another name first, so that a crash leaves the old record.
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(first, indent=1), encoding="utf-8")
        temporary.replace(path)
        progress.say(
            f"{file.name}: nobody has published its checksum, so this first download is trusted; sha256 {sha256}"
        )
    elif before != sha256:
        raise RunError(
            f"{file.url}: its sha256 is {sha256}, and was {before} at the first download on this account: it was "
            f"damaged on its path, or its publisher has changed it. If that is right, remove its line from {path}; the "
            "same command then goes on"
        )
    else:
        progress.say(f"{file.name}: its sha256 is that of the first download on this account")


def _record_path() -> Path:
    folder = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(folder, "exfm", "downloads.json")
