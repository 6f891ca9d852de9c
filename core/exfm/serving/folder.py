"""Reads the folder of an export, and removes from it the files that earlier exports have left."""

from __future__ import annotations

import json
from pathlib import PurePath

from pydantic import ValidationError

from exfm.errors import ConfigError, RunError
from exfm.serving.description import (
    DESCRIPTION_FILE,
    ONNX_FILE,
    PROGRAM_FILES,
    WEIGHTS_FILES,
    Description,
    is_weights_file,
)
from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace


def read_description(workspace: Workspace) -> Description:
    """Reads the description of the export in a folder.

    Raises:
        ConfigError: the folder holds no export.
        RunError: the description is damaged, or of another version of exfm.
    """
    if not workspace.exists(DESCRIPTION_FILE):
        raise ConfigError(f"{workspace.url}: no {DESCRIPTION_FILE} here; `exfm export` writes it")
    where = f"{workspace.url}/{DESCRIPTION_FILE}"
    try:
        read = json.loads(workspace.read(DESCRIPTION_FILE))
        if isinstance(read, dict) and read.get("format") == 1:
            raise RunError(f"{where}: an export of exfm 0.1, whose programs hold their weights; export again")
        description = Description.model_validate(read)
    except (ValidationError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RunError(f"{where}: not the description of an export: {error}") from error
    for name in description.files:
        # The description may come from elsewhere: a path in it could read or write outside of the folder.
        if PurePath(name).name != name:
            raise RunError(f"{where}: {name!r} is not the name of a file of an export")
    if sum(map(is_weights_file, description.files)) != 1:
        raise RunError(f"{where}: it must list one file {WEIGHTS_FILES}; it lists {', '.join(description.files)}")
    return description


def file_record(description: Description, name: str) -> FileRecord:
    """Returns size and checksum of a file that the description lists."""
    file = description.files[name]
    return FileRecord(name, file.bytes, file.xxh3)


def weights_before(workspace: Workspace) -> str:
    """Returns the name of the weights in a folder that is about to get another export; empty if it has none."""
    try:
        return read_description(workspace).weights_file
    except (ConfigError, RunError):
        return ""


def remove_other_files(workspace: Workspace, description: Description, kept: str) -> None:
    """Removes programs and weights that inputs.json does not list.

    Args:
        kept: weights that stay: a process that has read the inputs.json before may be about to read them.
    """
    for name in workspace.names(""):
        is_ours = name in (*PROGRAM_FILES, ONNX_FILE) or is_weights_file(name)
        if is_ours and name != kept and name not in description.files:
            workspace.remove_file(name)
