"""Encodes a manifest as JSON with a checksum of its content, and checks that it names only files of its model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import xxhash

from exfm.storage.hashing import FileRecord

_CHECKSUM = "xxh3"
_FOLDERS = ("predictions", "supervision", "snapshots")


def seal(manifest: Mapping[str, Any]) -> bytes:
    """Encodes a manifest, with the checksum of its other keys."""
    # JSON turns integer keys into strings. The checksum is of the manifest as it will be read.
    manifest = json.loads(json.dumps(manifest))
    sealed = {**manifest, _CHECKSUM: _checksum(manifest)}
    return (json.dumps(sealed, indent=2, allow_nan=False) + "\n").encode()


def unseal(data: bytes) -> dict[str, Any] | None:
    """Decodes a manifest; returns None for a truncated file, because a truncated JSON object does not parse.

    Raises:
        ValueError: the manifest was changed after it was committed, or has no checksum.
    """
    try:
        manifest = json.loads(data)
    except ValueError:
        return None
    if not isinstance(manifest, dict) or _CHECKSUM not in manifest:
        raise ValueError("it has no checksum, as before exfm 0.2")
    if manifest.pop(_CHECKSUM) != _checksum(manifest):
        raise ValueError("its content is not what was committed")
    return manifest


def file_records(manifest: Mapping[str, Any], model: str) -> dict[str, FileRecord]:
    """Returns the files that a manifest names, by role.

    Raises:
        ValueError: a record is malformed, or names a file that is not a file of the model.
    """
    try:
        files = {role: FileRecord(**record) for role, record in manifest["files"].items()}
    except (KeyError, AttributeError, TypeError):
        raise ValueError("it does not list files as manifests do") from None
    for record in files.values():
        # A manifest that somebody tampered with must not make a reader open, or a repair remove, files elsewhere.
        parts = PurePosixPath(record.path).parts
        if "\\" in record.path or ".." in parts or parts[:1] not in [(folder,) for folder in _FOLDERS]:
            raise ValueError(f"it names {record.path!r}, which is no file of the run")
        if parts[1:2] != (model,):
            raise ValueError(f"it names {record.path!r}, which is no file of {model!r}")
    return files


def _checksum(manifest: Mapping[str, Any]) -> str:
    # Sorted keys and no spaces: the checksum does not depend on how a tool has formatted the file.
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return xxhash.xxh3_128_hexdigest(canonical)
