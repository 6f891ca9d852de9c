"""Checks that an exported program's archive holds a graph and plain tensors, and nothing that would be unpickled."""

from __future__ import annotations

import json
import re
import zipfile
from typing import IO, Any

# Entries that torch 2.x writes and reads as JSON, text or raw bytes.
_PLAIN = re.compile(
    r"models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|archive_format|archive_version|byteorder|\.data/(version|serialization_id|alignment)|version"
)
_EMPTY = "data/sample_inputs/model.pt"
"""Entry that torch requires, and unpickles unless it is empty."""


def check_archive(file: IO[bytes]) -> None:
    """Checks that a program's archive holds only entries that `exfm export` writes, and no pickle.

    Raises:
        ValueError: it holds other entries, or is no archive.
    """
    try:
        archive = zipfile.ZipFile(file)
        for entry in archive.infolist():
            name = entry.filename.partition("/")[2]
            if name == _EMPTY and entry.file_size:
                raise ValueError(f"{name} holds a pickle of sample inputs, which loading would execute")
            if name != _EMPTY and not _PLAIN.fullmatch(name):
                raise ValueError(f"{name}: exfm writes no such entry, and torch may unpickle it")
            if name.endswith("_config.json"):
                _check_tensors(name, json.loads(archive.read(entry)))
    except (zipfile.BadZipFile, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(str(error)) from error
    finally:
        file.seek(0)  # the caller loads the same file


def _check_tensors(name: str, listed: Any) -> None:
    """Raises ValueError unless a list of tensors has the expected form and marks none of them as pickled."""
    config = listed.get("config") if isinstance(listed, dict) else None
    # For any other form, check an entry without the mark, so that the check fails.
    entries = config.values() if isinstance(config, dict) else [{}]
    for entry in entries:
        if not isinstance(entry, dict) or entry.get("use_pickle") is not False:
            raise ValueError(f"{name} lists a tensor that loading would unpickle")
