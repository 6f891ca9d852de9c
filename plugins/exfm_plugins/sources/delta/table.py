"""Opens a version of a Delta table."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pyarrow.fs as pa_fs

import exfm

_FEATURES = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"}
"""What a table's protocol may ask of a reader; deltalake and the row group reader implement these."""


def open_table(path: str, version: int | None, timestamp: datetime | None) -> Any:
    """Opens a version of a table: ``version``, the newest at ``timestamp``, or the newest.

    Raises:
        ValueError: deltalake is not installed, or cannot read the table or the version; or the table needs a feature
            that exfm does not read. An ``exfm.components.NotYetError`` if there is no table or no such version yet.
    """
    try:
        import deltalake
        from deltalake.exceptions import DeltaError, TableNotFoundError
    except ImportError as error:
        raise ValueError("delta needs the package deltalake: pip install 'exfm[delta]'") from error
    try:
        table = deltalake.DeltaTable(path)
    except TableNotFoundError as error:
        raise exfm.components.NotYetError(f"delta: path: there is no Delta table at {path!r}") from error
    except (DeltaError, OSError) as error:
        raise ValueError(f"delta: path: the table at {path!r} cannot be read: {_first_line(error)}") from error
    newest = table.version()
    if version is not None and version > newest:
        raise exfm.components.NotYetError(
            f"delta: version: the table at {path!r} has no version {version}; the newest is {newest}"
        )
    try:
        if version is not None or timestamp is not None:
            table.load_as_version(timestamp if version is None else version)
    except (DeltaError, OSError) as error:
        key = "timestamp" if version is None else "version"
        raise ValueError(
            f"delta: {key}: the table at {path!r} cannot be read as of {timestamp or version}; the newest version is "
            f"{newest}: {_first_line(error)}"
        ) from error
    if timestamp is not None:
        _check_time(table, path, timestamp)
    _check_protocol(table, path)
    return table


def open_filesystem(table: Any) -> pa_fs.FileSystem:
    """Returns the file system of a table's folder, with the credentials of deltalake."""
    from deltalake.fs import DeltaStorageHandler

    return pa_fs.PyFileSystem(DeltaStorageHandler(table.table_uri))


def _check_time(table: Any, path: str, timestamp: datetime) -> None:
    """Raises ValueError if a table has no version at a time, for which deltalake opens the first there is."""
    # The time of a version is that of its file in the log; the log may be cleaned up behind a checkpoint.
    file = open_filesystem(table).get_file_info(f"_delta_log/{table.version():020}.json")
    if file.mtime is not None and file.mtime > timestamp:
        raise ValueError(
            f"delta: timestamp: the table at {path!r} has no version at {timestamp.isoformat()}; the first that its "
            f"log has is of {file.mtime.isoformat(timespec='seconds')}"
        )


def _check_protocol(table: Any, path: str) -> None:
    """Raises ValueError if rows of the table cannot be read from its files."""
    features = set(table.protocol().reader_features or ()) - _FEATURES
    if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
        features.add("columnMapping")
    # The feature may be listed and not in use.
    elif "columnMapping" in features:
        features.remove("columnMapping")
    if features:
        raise ValueError(
            f"delta: path: the table at {path!r} needs {', '.join(sorted(features))} of its readers, which exfm does "
            f"not read. Allowed: {', '.join(sorted(_FEATURES))}. Write a copy of the table without"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
