"""Reads delimited text files of any size by row number, at constant memory."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any

import fsspec
import pyarrow as pa
from pyarrow import csv

from exfm.errors import suggestion
from exfm.interfaces.data_source import Origin

# 4 MiB: small enough to parse in memory, large enough that reads from an object store are few.
_BLOCK_BYTES = 1 << 22
# Arrow's CSV reader names the row of a block in its message, counting from 1.
_ROW = re.compile(r"Row #(\d+)")


@dataclass(frozen=True)
class _Block:
    """Whole lines: their byte offset in the file, and their row numbers."""

    offset: int
    bytes: int
    first_row: int
    rows: int


class DelimitedFile:
    """A text file with a row per line and without quotes, at any fsspec URL.

    The first use passes over the file once and remembers the offset of every few MiB; after that the cost of any range
    of rows is proportional to its length. Blank lines are rows too, because row numbers and lines must agree.

    Args:
        url: the file, not compressed: rows are read from its middle.
        columns: names and types of the columns that are read; without a header, all columns of the file, in order.
        owner: name of the data source, with which messages begin.
        delimiter: separator of columns.
        header: whether the first line names the columns; then they may be in any order, and there may be others.
        nulls: spellings of a missing value.

    Raises:
        ValueError: from every method: the file does not exist, lacks a column, or has a line that cannot be read; the
            message names the row, counted from 0.
    """

    def __init__(
        self,
        url: str,
        columns: Mapping[str, pa.DataType],
        *,
        owner: str,
        delimiter: str = ",",
        header: bool = False,
        nulls: Sequence[str] = ("",),
        block_bytes: int = _BLOCK_BYTES,
    ) -> None:
        if url.endswith((".gz", ".bz2", ".xz", ".zst", ".zip")):
            raise ValueError(f"{owner}: path: {url!r} is compressed; unpack it, since windows begin in its middle")
        self.url = url
        self._columns = dict(columns)
        self._owner = owner
        self._delimiter = delimiter
        self._header = header
        self._nulls = list(nulls)
        self._block_bytes = block_bytes

    @property
    def rows(self) -> int:
        """Returns the number of rows, without the header."""
        if not self._blocks:
            return 0
        return self._blocks[-1].first_row + self._blocks[-1].rows

    def read(self, first: int, end: int, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """Yields the rows from ``first`` to ``end``, excluded, in batches marked with their origin.

        Args:
            columns: names of the columns to read; all by default.
        """
        names = list(columns or self._columns)
        with self._open() as file:
            # The last block that begins at or before the first row contains it.
            start = bisect_right(self._blocks, first, key=lambda block: block.first_row) - 1
            for block in self._blocks[max(start, 0) :]:
                if block.first_row >= end:
                    return
                skip = max(first - block.first_row, 0)
                take = min(end - block.first_row, block.rows) - skip
                if take > 0:
                    file.seek(block.offset)
                    batch = self._parse(file.read(block.bytes), block.first_row, names)
                    yield Origin(self.url, block.first_row + skip).mark(batch.slice(skip, take))

    @cached_property
    def _blocks(self) -> list[_Block]:
        """Finds blocks of whole lines in a single pass over the file."""
        blocks: list[_Block] = []
        row = 0
        with self._open() as file:
            offset = len(file.readline()) if self._header else 0
            while data := file.read(self._block_bytes):
                # Up to the end of the line, so that every block parses alone; the last line may lack its newline.
                data += file.readline()
                rows = data.count(b"\n") + (not data.endswith(b"\n"))
                blocks.append(_Block(offset, len(data), row, rows))
                offset, row = offset + len(data), row + rows
        return blocks

    @cached_property
    def _names(self) -> list[str]:
        """Returns the names of the file's columns, in its order."""
        if not self._header:
            return list(self._columns)
        with self._open() as file:
            header = file.readline().decode("utf-8", "replace")
        names = [name.strip() for name in header.split(self._delimiter)]
        for column in self._columns:
            if column not in names:
                location = f"{self._owner}: {self.url}: the first line"
                raise ValueError(f"{location} does not name a column {column!r}.{suggestion(column, names)}")
        return names

    def _open(self) -> IO[bytes]:
        filesystem, path = fsspec.url_to_fs(self.url)
        try:
            file: IO[bytes] = filesystem.open(path, "rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ValueError(f"{self._owner}: path: there is no file {self.url!r}") from error
        return file

    def _parse(self, data: bytes, first_row: int, names: list[str]) -> pa.RecordBatch:
        """Parses the lines of a block, whose first line is row ``first_row``."""
        types: dict[str, Any] = {name: self._columns[name] for name in names}
        try:
            table = csv.read_csv(
                pa.BufferReader(data),
                # A single Arrow block, because row numbers in messages count from the beginning of a block.
                csv.ReadOptions(column_names=self._names, block_size=len(data) + 1, use_threads=False),
                csv.ParseOptions(delimiter=self._delimiter, quote_char=False, ignore_empty_lines=False),
                csv.ConvertOptions(
                    column_types=types, include_columns=names, null_values=self._nulls, strings_can_be_null=True
                ),
            )
        except pa.ArrowInvalid as error:
            row, reason = "", str(error)
            named = _ROW.search(reason)
            if named is not None:
                row = f", row {first_row + int(named[1]) - 1}"
                reason = reason[named.end() :].lstrip(": ")
            raise ValueError(f"{self._owner}: {self.url}{row}: {reason}") from error
        return table.combine_chunks().to_batches()[0]
