"""Streams Parquet files at any fsspec URL."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from exfm.sources import RowGroupSource
from exfm_plugins.sources.parquet.files import ParquetFiles


class Parquet(RowGroupSource):
    """Streams Parquet files, at any fsspec URL, with the schema of the experiment file.

    Each row belongs to the window of its time, wherever it lies: files may overlap, and their rows may be in any order.
    A window reads the row groups whose statistics overlap it, and only the schema's columns, many at once where they
    overlap in time. A row without a time counts at the row before it, so that the core reports it with its file and
    row. The core also reports the rows of a file that lacks a column, or whose column has a wrong type.

    Columns may also be in the path, as in ``dt=2024-03-01/hour=3``: integers if all values are, or strings. If no file
    has the column of example ids, nor one with a similar name, an example's id is its place: its file and row.

    ``time_range`` and ``parts`` list the files; between two listings, reads use the files of the last listing.

    Raises:
        ValueError: there are no files, a file is no Parquet or has no time, or a column is in none of the files. An
            ``exfm.components.NotYetError`` if there are no files or no rows yet, or a file is still being written.
    """

    name: ClassVar[str] = "parquet"
    free_fields: ClassVar[frozenset[str]] = RowGroupSource.free_fields | frozenset({"path"})

    class Config(RowGroupSource.Config):
        """Configures the location of the files, and the schema of their rows."""

        path: str = Field(description="Folder (with its sub-folders), file or glob; any fsspec URL.")

    config: Config

    @property
    def location(self) -> str:
        """Returns the path, for messages."""
        return f"path {self.config.path!r}"

    def open_files(self) -> ParquetFiles:
        """Returns the files of the stream; nothing is read."""
        config = self.config
        return ParquetFiles(config.path, config.columns, config.example_id, config.event_time, config.time_unit)
