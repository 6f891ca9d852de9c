"""A manifest as bytes: a JSON object with a checksum of itself, which names files of its own model and no others."""

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
    """Writes a manifest with the checksum of the rest."""
    manifest = json.loads(json.dumps(manifest))  # as it will be read: keys are strings
    sealed = {**manifest, _CHECKSUM: _checksum(manifest)}
    return (json.dumps(sealed, indent=2, allow_nan=False) + "\n").encode()


def unseal(data: bytes) -> dict[str, Any] | None:
    """Reads a manifest; None of half of one: half a JSON object is no JSON.

    Raises:
        ValueError: it was changed since.
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


def files_of(manifest: Mapping[str, Any], model: str) -> dict[str, FileRecord]:
    """The files that a manifest names, by role.

    Raises:
        ValueError: one of them is not a file of the model.
    """
    try:
        files = {role: FileRecord(**record) for role, record in manifest["files"].items()}
    except (KeyError, AttributeError, TypeError):
        raise ValueError("it does not list files as manifests do") from None
    for record in files.values():
        parts = PurePosixPath(record.path).parts
        if "\\" in record.path or ".." in parts or parts[:1] not in [(folder,) for folder in _FOLDERS]:
            raise ValueError(f"it names {record.path!r}, which is no file of the run")
        if parts[1:2] != (model,):
            raise ValueError(f"it names {record.path!r}, which is no file of {model!r}")
    return files


def _checksum(manifest: Mapping[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    return xxhash.xxh3_128_hexdigest(canonical)
