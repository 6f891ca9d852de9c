"""Finds rows of windows in the larger files into which a vacuum has merged small files.

``vacuum/FOLDER/MODEL/merged-FIRST-LAST-DIGEST.json`` says which row groups of a merged file hold the rows of each
committed file. Manifests do not change: where a committed file is gone, its readers look here. Checksums are of the
bytes of each window, so that reading a window reads its own bytes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pyarrow as pa

from exfm.errors import RunError
from exfm.storage.hashing import FileRecord
from exfm.storage.manifests import seal, unseal
from exfm.storage.marks import Rows
from exfm.storage.workspace import ByteRange, MissingFileError, Workspace

_COMMITTED = re.compile(r"(?P<folder>predictions|supervision)/(?P<model>[^/]+)/(window|backfill)-(?P<window>\d{6,})-.*")
_RECORD = re.compile(r"merged-(?P<first>\d{6,})-(?P<last>\d{6,})-[0-9a-f]{12}\.json")
MERGED_NAME = re.compile(r"merged-\d{6,}-\d{6,}-[0-9a-f]{12}\.parquet")

_ATTEMPTS = 3
"""Bounds the attempts to read a window while merged files are merged again."""


@dataclass(frozen=True)
class MergedWindow:
    """Describes the rows of a committed file in a merged file.

    Attributes:
        window: index of the window.
        rows: the committed file.
        first_group: the first of its row groups.
        groups: number of its row groups, which follow each other.
        content: the bytes of its row groups.
    """

    window: int
    rows: FileRecord
    first_group: int
    groups: int
    content: ByteRange


@dataclass(frozen=True)
class MergedFile:
    """Describes a merged file.

    Attributes:
        file: the file.
        footer: its last bytes, which say where its row groups are.
        windows: its content, in order.
    """

    file: FileRecord
    footer: ByteRange
    windows: tuple[MergedWindow, ...]

    @property
    def record_path(self) -> str:
        """Returns the path of the record of the file."""
        return f"vacuum/{self.file.path.removesuffix('.parquet')}.json"

    def check(self, workspace: Workspace, windows: tuple[MergedWindow, ...]) -> None:
        """Checks the bytes of some windows.

        Raises:
            RunError: the file is missing, or its content is not the recorded content.
        """
        self.open(workspace, windows).close()

    def open(self, workspace: Workspace, windows: tuple[MergedWindow, ...]) -> pa.NativeFile:
        """Opens the file after checking the bytes of some windows, and those that say where they are.

        Raises:
            RunError: the file is missing, or its content is not the recorded content.
        """
        return workspace.open_ranges(self.file, (self.footer, *(window.content for window in windows)))


def write_record(workspace: Workspace, merged: MergedFile) -> None:
    """Records a merged file, from when on its readers find it."""
    data = seal(asdict(merged))
    if not workspace.create(merged.record_path, data) and _read_record(workspace, merged.record_path) is None:
        workspace.write(merged.record_path, data)  # a truncated record, whose writer has died


def read_records(workspace: Workspace, folder: Rows, model: str, window: int | None = None) -> list[MergedFile]:
    """Reads the records of a model's merged files, of those with a window where it is named; the newest last.

    Raises:
        RunError: a record is damaged.
    """
    records: list[MergedFile] = []
    parent = f"vacuum/{folder}/{model}"
    for name in workspace.names(parent):
        match = _RECORD.fullmatch(name)
        if match is None or (window is not None and not int(match["first"]) <= window <= int(match["last"])):
            continue
        record = _read_record(workspace, f"{parent}/{name}")
        if record is not None:
            records.append(record)
    return records


def _read_record(workspace: Workspace, path: str) -> MergedFile | None:
    """Reads a record; None if it is gone, or was never written to its end."""
    try:
        raw = unseal(workspace.read(path))
        if raw is None:
            return None
        windows: list[MergedWindow] = []
        for entry in raw["windows"]:
            entry |= {"rows": FileRecord(**entry["rows"]), "content": ByteRange(**entry["content"])}
            windows.append(MergedWindow(**entry))
        merged = MergedFile(FileRecord(**raw["file"]), ByteRange(**raw["footer"]), tuple(windows))
        # A record that somebody tampered with must not make a reader open files elsewhere.
        if merged.record_path != path:
            raise ValueError(f"it names {merged.file.path!r}")
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as error:
        raise RunError(f"{workspace.name(path)}: damaged: {error}{workspace.remedy}") from error
    return merged


def find_merged(workspace: Workspace, record: FileRecord) -> Iterator[tuple[MergedFile, MergedWindow]]:
    """Yields the places of a committed file's rows in merged files, newly read at each attempt."""
    match = _COMMITTED.fullmatch(record.path)
    if match is None:
        return
    folder: Rows = "supervision" if match["folder"] == "supervision" else "predictions"
    for _ in range(_ATTEMPTS):
        for merged in reversed(read_records(workspace, folder, match["model"], int(match["window"]))):
            for window in merged.windows:
                if window.rows == record:
                    yield merged, window


def check_committed(workspace: Workspace, record: FileRecord) -> None:
    """Checks a committed file, or its rows in a merged file, in constant memory.

    Raises:
        RunError: it is missing, or its content is not the committed content.
    """
    try:
        workspace.check(record)
    except MissingFileError:
        for merged, window in find_merged(workspace, record):
            try:
                merged.check(workspace, (window,))
                return
            except MissingFileError:
                continue
        raise
