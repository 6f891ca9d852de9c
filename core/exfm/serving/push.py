"""Copies an export to a destination: the Hugging Face Hub, MLflow's model registry, or a folder."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Protocol

from exfm.errors import ConfigError, RunError
from exfm.redaction import without_credentials
from exfm.serving.archives import check_archive
from exfm.serving.description import CARD_FILE, DESCRIPTION_FILE, PROGRAM_FILE, REQUEST_FILE, Description
from exfm.serving.folder import file_record, read_description, remove_other_files, weights_before
from exfm.serving.to_hub import HubTarget
from exfm.serving.to_registry import RegistryTarget
from exfm.storage.temporary import spool_folder, temporary_folder
from exfm.storage.workspace import Workspace

README_FILE = "README.md"
"""Name of the card at the destination, under which hubs and file browsers show it."""

_KINDS = "hf://OWNER/NAME, mlflow:NAME, a URL of a folder such as file:///exports/vm, or a path that begins with / or ."


class Target(Protocol):
    """Receives the files of an export."""

    def send(self, folder: Path, description: Description) -> str:
        """Sends all files of a local folder, and returns the address that they have from then on."""
        ...


class FolderTarget:
    """Copies the files into a folder.

    Args:
        url: any fsspec URL.

    Raises:
        ConfigError: the folder has a README and no export, so that the card would replace another text.
    """

    def __init__(self, url: str) -> None:
        self._workspace = Workspace(url)
        if self._workspace.exists(README_FILE) and not self._workspace.exists(DESCRIPTION_FILE):
            raise ConfigError(
                f"{url}: the folder has a {README_FILE} and no export: the model card would replace it; name another"
            )

    def send(self, folder: Path, description: Description) -> str:
        """Copies the files, inputs.json last, because its existence says that the export is complete."""
        kept = weights_before(self._workspace)
        for path in sorted(folder.iterdir(), key=lambda path: path.name == DESCRIPTION_FILE):
            with path.open("rb") as file, self._workspace.writing(path.name) as target:
                shutil.copyfileobj(file, target, 1 << 20)
        remove_other_files(self._workspace, description, kept)
        return without_credentials(self._workspace.url)


def parse_target(target: str, tracking_uri: str | None = None, public: bool = False) -> Target:
    """Opens a destination.

    Args:
        target: hf://OWNER/NAME, mlflow:NAME, or the URL or path of a folder.
        tracking_uri: of MLflow; by default that of the environment.
        public: whether a repository that does not exist yet is visible to everybody.

    Raises:
        ConfigError: there is no such kind of destination, or a package that it needs is not installed.
    """
    is_mlflow, is_hub = target.startswith("mlflow:"), target.startswith("hf://")
    if tracking_uri is not None and not is_mlflow:
        raise ConfigError(f"--tracking-uri: it is for targets mlflow:NAME; the target is {target!r}")
    if public and not is_hub:
        raise ConfigError(f"--public: it is for targets hf://OWNER/NAME; the target is {target!r}")
    if is_hub:
        return HubTarget(target.removeprefix("hf://"), public)
    if is_mlflow:
        return RegistryTarget(target.removeprefix("mlflow:").removeprefix("//"), tracking_uri)
    if not (target.startswith(("/", ".")) or re.match(r"[A-Za-z][\w.+-]*:", target)):
        raise ConfigError(f"TARGET: {target!r} is no kind of destination. Allowed: {_KINDS}")
    return FolderTarget(target)


def push(export: str, target: Target) -> tuple[str, Description]:
    """Checks an export and sends it: the files that inputs.json lists, inputs.json, and the card as README.md.

    Other files of the folder are not sent.

    Args:
        export: the folder that ``exfm export`` wrote, any fsspec URL.

    Returns:
        The address of the files, and their description.

    Raises:
        ConfigError: the folder holds no export, or no card.
        RunError: a file is corrupt, or the program holds a pickle.
    """
    workspace = Workspace(export)
    description = read_description(workspace)
    if not workspace.exists(CARD_FILE):
        raise ConfigError(f"{export}: no {CARD_FILE} here; `exfm export` of this version writes it: export again")
    # Copied and checked before anything is sent, so that a corrupt export never replaces a sound one at the
    # destination.
    with temporary_folder(spool_folder()) as folder:
        for name in description.files:
            with workspace.reading(file_record(description, name)) as source, (folder / name).open("wb") as copy:
                # In pieces of a megabyte, because programs and tables may exceed memory.
                shutil.copyfileobj(source, copy, 1 << 20)
        _check_program(folder / PROGRAM_FILE, export)
        if REQUEST_FILE in description.files:
            _check_program(folder / REQUEST_FILE, export)
        (folder / README_FILE).write_bytes(workspace.read(CARD_FILE))
        (folder / DESCRIPTION_FILE).write_bytes(workspace.read(DESCRIPTION_FILE))
        return target.send(folder, description), description


def _check_program(path: Path, export: str) -> None:
    """Raises RunError if the program holds entries that loading would unpickle, so that none is spread."""
    try:
        with path.open("rb") as file:
            check_archive(file)
    except (ValueError, FileNotFoundError) as error:
        raise RunError(f"{export}/{path.name}: not a program that `exfm export` has written: {error}") from error
