"""Opens a snapshot of an Iceberg table through a catalog."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import exfm
from exfm.components import suggestion

_SECRET = re.compile(
    r"password|secret|token|credential|authorization|access-key|account-key|private-key|connection-string",
    re.IGNORECASE,
)
_NAMED_SNAPSHOTS = 3
"""Snapshots that a message names."""


def check_properties(properties: Mapping[str, str]) -> None:
    """Raises ValueError if properties of a catalog hold a secret, or name code to import."""
    for key in properties:
        if key.endswith("-impl"):
            raise ValueError(
                f"{key} names code to import, which an experiment may not; pyiceberg's .pyiceberg.yaml may"
            )
        if _SECRET.search(key):
            variable = re.sub(r"\W", "_", key.replace(".", "__")).upper()
            raise ValueError(
                f"{key} is a secret, which a file of an experiment must not hold: set the environment variable "
                f"PYICEBERG_CATALOG__NAME__{variable}, with the name of the catalog, or write it into .pyiceberg.yaml"
            )


class TableReference:
    """Names a snapshot of a table, and opens it.

    Args:
        catalog: the name of the catalog.
        properties: properties of the catalog beside those of pyiceberg's configuration.
        table: the name of the table, with its namespace.
        snapshot_id, as_of: choose the snapshot; the newest if both are None.
    """

    def __init__(
        self,
        catalog: str,
        properties: Mapping[str, str],
        table: str,
        snapshot_id: int | None = None,
        as_of: datetime | None = None,
    ) -> None:
        self.table = table
        self.is_newest = snapshot_id is None and as_of is None
        self._name = catalog
        self._properties = properties
        self._snapshot_id = snapshot_id
        self._as_of = as_of
        self._catalog: Any = None

    @property
    def location(self) -> str:
        """Returns the source, the catalog and the table, for messages."""
        return f"iceberg: the table {self.table!r} of catalog {self._name!r}"

    def load(self) -> Any:
        """Loads the table from its catalog.

        Raises:
            ValueError: pyiceberg is not installed, or the catalog cannot be opened. An
                ``exfm.components.NotYetError`` if there is no such table yet.
        """
        try:
            from pyiceberg.catalog import load_catalog
            from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError
        except ImportError as error:
            raise ValueError("iceberg needs the package pyiceberg: pip install 'exfm[iceberg]'") from error
        try:
            if self._catalog is None:
                self._catalog = load_catalog(self._name, **self._properties)
            return self._catalog.load_table(self.table)
        except (NoSuchTableError, NoSuchNamespaceError) as error:
            raise exfm.components.NotYetError(
                f"iceberg: table: catalog {self._name!r}{self._uri()} has no table {self.table!r}{self._nearest()}"
            ) from error
        except Exception as error:
            # Each kind of catalog raises the errors of its client: SQLAlchemy, requests, boto3 and others.
            raise ValueError(
                f"iceberg: catalog: {self._name!r}{self._uri()} cannot be opened, or its table {self.table!r} not "
                f"read: {first_line(error)}"
            ) from error

    def scan(self, table: Any) -> Any:
        """Returns pyiceberg's scan of the snapshot of a loaded table.

        Raises:
            ValueError: the table has no such snapshot. An ``exfm.components.NotYetError`` if it has none yet.
        """
        if not table.snapshots():
            raise exfm.components.NotYetError(f"{self.location} has no snapshot: nothing was written to it")
        if self._snapshot_id is not None and table.snapshot_by_id(self._snapshot_id) is None:
            raise ValueError(
                f"iceberg: snapshot_id: {self.location.removeprefix('iceberg: ')} has no snapshot {self._snapshot_id}; "
                f"it has {_newest_snapshots(table)}"
            )
        if self._as_of is None:
            return table.scan(snapshot_id=self._snapshot_id)
        snapshot = table.snapshot_as_of_timestamp(int(self._as_of.timestamp() * 1000))
        if snapshot is None:
            raise ValueError(
                f"iceberg: as_of: {self.location.removeprefix('iceberg: ')} has no snapshot at "
                f"{self._as_of.isoformat()}; it has {_newest_snapshots(table)}"
            )
        return table.scan(snapshot_id=snapshot.snapshot_id)

    def _uri(self) -> str:
        uri = self._properties.get("uri")
        return f" at {uri}" if uri else ""

    def _nearest(self) -> str:
        """Returns a hint at the table of the namespace with the nearest name."""
        namespace = self.table.rpartition(".")[0]
        try:
            names = {".".join(name) for name in self._catalog.list_tables(namespace)}
        except Exception:
            # Only a hint; the namespace may not exist, or its tables may not be listed.
            return ""
        return f".{suggestion(self.table, names)}"


def _newest_snapshots(table: Any) -> str:
    """Lists the newest snapshots of a table with their times."""
    newest = sorted(table.snapshots(), key=lambda snapshot: -snapshot.timestamp_ms)
    texts: list[str] = []
    for snapshot in newest[:_NAMED_SNAPSHOTS]:
        time = datetime.fromtimestamp(snapshot.timestamp_ms / 1000, UTC).isoformat(timespec="seconds")
        texts.append(f"{snapshot.snapshot_id} of {time}")
    if len(newest) > _NAMED_SNAPSHOTS:
        texts.append(f"and {len(newest) - _NAMED_SNAPSHOTS} older")
    return ", ".join(texts)


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type."""
    return str(error).partition("\n")[0] or type(error).__name__
