"""Streams the rows of an Iceberg table."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import AwareDatetime, Field, field_validator, model_validator

from exfm.sources import RowGroupSource
from exfm_plugins.sources.iceberg.catalog import TableReference, check_properties
from exfm_plugins.sources.iceberg.files import IcebergFiles


class Iceberg(RowGroupSource):
    """Streams an Apache Iceberg table of any catalog that the package ``pyiceberg`` knows, by the experiment's schema.

    The rows are those that ``pyiceberg`` reads for a snapshot of the table: removed files and deleted rows (positional
    delete files, deletion vectors) are not read, and columns are found by field id, so that a renamed column keeps its
    values and an added column is null in older files. ``time_range`` and ``parts`` look up the snapshot:
    ``snapshot_id``, the newest at ``as_of``, or the newest there is; reads until the next look are of that snapshot.
    Credentials are those of ``pyiceberg``'s own configuration, or in the environment.

    Each row belongs to the window of its time, wherever it lies, as of ``parquet``: only the row groups whose
    statistics overlap a window are read, and only the schema's columns. Parts are the data files of the snapshot. A
    compaction replaces files without changing rows, so that no row is late.

    Raises:
        ValueError: the catalog cannot be opened, or the table has no such snapshot or column, needs what ``pyiceberg``
            does not read, or a file of the snapshot was removed. An ``exfm.components.NotYetError`` if there is no
            table, or no row, yet.
    """

    name: ClassVar[str] = "iceberg"
    # A snapshot sets how far the table has changed, as time does where none is set: parts tell the differences.
    free_fields: ClassVar[frozenset[str]] = RowGroupSource.free_fields | frozenset(
        {"catalog", "properties", "table", "snapshot_id", "as_of"}
    )

    class Config(RowGroupSource.Config):
        """Configures the catalog, the table, its snapshot, and the schema of its rows."""

        table: str = Field(description="The table: NAMESPACE.NAME, as the catalog has it.")
        catalog: str = Field("default", description="The catalog: a name in pyiceberg's configuration, or any name.")
        properties: dict[str, str] = Field(
            {},
            description="Properties of the catalog (type, uri, warehouse ...), beside pyiceberg's configuration. "
            "Secrets do not belong here.",
        )
        snapshot_id: int | None = Field(None, description="The snapshot that is read; the newest if left out.")
        as_of: AwareDatetime | None = Field(
            None, description="Reads the snapshot that was current at this time, such as 2026-01-31T00:00:00Z."
        )

        @field_validator("properties")
        @classmethod
        def _check_properties(cls, properties: dict[str, str]) -> dict[str, str]:
            check_properties(properties)
            return properties

        @model_validator(mode="after")
        def _check_snapshot(self) -> Self:
            if self.snapshot_id is not None and self.as_of is not None:
                raise ValueError("snapshot_id and as_of: both choose a snapshot of the table; give one of them")
            return self

    config: Config

    @property
    def location(self) -> str:
        """Returns the table, for messages."""
        return f"table {self.config.table!r}"

    def open_files(self) -> IcebergFiles:
        """Returns the files of the table; nothing is read."""
        config = self.config
        table = TableReference(config.catalog, config.properties, config.table, config.snapshot_id, config.as_of)
        return IcebergFiles(table, config.columns, config.event_time, config.time_unit)
