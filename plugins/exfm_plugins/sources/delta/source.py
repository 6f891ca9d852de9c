"""Streams the rows of a Delta table."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import AwareDatetime, Field, model_validator

from exfm.sources import RowGroupSource
from exfm_plugins.sources.delta.files import DeltaFiles


class Delta(RowGroupSource):
    """Streams a Delta table (delta.io), at any URL that the package ``deltalake`` reads, by the experiment's schema.

    The rows are those of a version of the table, as its log says: removed files and deleted rows (deletion vectors)
    are not read, partition columns are columns, and a column that was added is null in older files. ``time_range`` and
    ``parts`` look up the version: ``version``, the newest at ``timestamp``, or the newest there is; reads until the
    next look are of that version. Credentials are those in the environment, such as ``AWS_ACCESS_KEY_ID``.

    Each row belongs to the window of its time, wherever it lies, as of ``parquet``: only the row groups whose
    statistics overlap a window are read, and only the schema's columns. Parts are the data files of the version. A
    compaction replaces files without changing rows, so that no row is late.

    Raises:
        ValueError: the table has no such version or column, needs a feature that exfm does not read, or a file of the
            version was vacuumed. An ``exfm.components.NotYetError`` if there is no table, or no row, yet.
    """

    name: ClassVar[str] = "delta"
    # A version sets how far the table has changed, as time does where none is set: parts tell the differences.
    free_fields: ClassVar[frozenset[str]] = RowGroupSource.free_fields | frozenset({"path", "version", "timestamp"})

    class Config(RowGroupSource.Config):
        """Configures the table, its version, and the schema of its rows."""

        path: str = Field(description="The table's folder, or any URL that deltalake reads: s3://, gs://, abfss:// ...")
        version: int | None = Field(None, ge=0, description="The version that is read; the newest if left out.")
        timestamp: AwareDatetime | None = Field(
            None, description="Reads the newest version at this time, such as 2026-01-31T00:00:00Z."
        )

        @model_validator(mode="after")
        def _check_version(self) -> Self:
            if self.version is not None and self.timestamp is not None:
                raise ValueError("version and timestamp: both choose a version of the table; give one of them")
            return self

    config: Config

    @property
    def location(self) -> str:
        """Returns the path, for messages."""
        return f"path {self.config.path!r}"

    def open_files(self) -> DeltaFiles:
        """Returns the files of the table; nothing is read."""
        config = self.config
        version = config.version, config.timestamp
        return DeltaFiles(config.path, config.columns, config.event_time, config.time_unit, *version)
