"""Defines how a stream of Parquet files lists and opens its files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import pyarrow as pa

from exfm.sources.row_groups.order import StreamFile, order_files

if TYPE_CHECKING:
    import pyarrow.parquet as pq


class RowGroupFiles(ABC):
    """Base of the list of files of a ``RowGroupSource``."""

    _files: tuple[StreamFile, ...] | None = None

    def look(self) -> tuple[StreamFile, ...]:
        """Lists the files that have rows, in the order of their first event."""
        self._files = order_files(self.current_files())
        return self._files

    def last_seen(self) -> tuple[StreamFile, ...]:
        """Returns the files as of the last look."""
        return self.look() if self._files is None else self._files

    @abstractmethod
    def current_files(self) -> list[StreamFile]:
        """Lists the files that have rows now, in any order and without their first and last time.

        Raises:
            ValueError: there is no file, or a file cannot be read.
        """

    @abstractmethod
    def open(self, path: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
        """Opens a file by the path in its ``StreamFile``; called in any thread.

        Args:
            metadata: the file's footer, where it was read before.
        """

    @abstractmethod
    def complete(self, batch: pa.RecordBatch, file: StreamFile, first_row: int) -> pa.RecordBatch:
        """Returns a batch with all columns of the stream, of which the file may lack some; called in any thread.

        Args:
            batch: consecutive rows, with the time in microseconds and with ``StreamFile.columns``; of rows that no
                reader needs, some columns alone, to which none need be added.
            first_row: the index of its first row in the file.
        """
