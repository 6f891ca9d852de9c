"""Delimited text files of any size, read by row number at constant memory."""

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

_BLOCK_BYTES = 1 << 22
_ROW = re.compile(r"Row #(\d+)")


@dataclass(frozen=True)
class _Block:
    """Whole lines: where they begin in the file, and which rows they are."""

    offset: int
    bytes: int
    first_row: int
    rows: int


class DelimitedFile:
    """A text file with one row per line and no quotes, at any fsspec URL.

    The first use passes over the file once and remembers where every few MiB begin; from then on any range of rows
    costs what it holds, wherever it lies. Lines that are blank are rows too, so that row numbers and lines agree.

    Args:
        url: the file, not compressed: rows are read from its middle.
        columns: names and types of the columns that are read; without a header, all columns of the file, in order.
        owner: what messages begin with, the name of the data source.
        delimiter: what separates columns.
        header: whether the first line names the columns; then they may be in any order, and there may be others.
        nulls: what stands for a missing value.

    Raises:
        ValueError: from every method: the file is not there, lacks a column, or has a line that cannot be read; the
            message names the row, the first being 0.
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
        """How many rows there are, the header apart."""
        return self._blocks[-1].first_row + self._blocks[-1].rows if self._blocks else 0

    def read(self, first: int, end: int, columns: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
        """The rows from ``first`` to ``end``, that one excluded, each batch marked with its origin.

        Args:
            columns: those that are wanted; all by default.
        """
        wanted = list(columns or self._columns)
        firsts = [block.first_row for block in self._blocks]
        with self._open() as file:
            for block in self._blocks[max(bisect_right(firsts, first) - 1, 0) :]:
                if block.first_row >= end:
                    return
                skip = max(first - block.first_row, 0)
                take = min(end - block.first_row, block.rows) - skip
                if take > 0:
                    file.seek(block.offset)
                    batch = self._parse(file.read(block.bytes), block.first_row, wanted)
                    yield Origin(self.url, block.first_row + skip).mark(batch.slice(skip, take))

    @cached_property
    def _blocks(self) -> list[_Block]:
        blocks: list[_Block] = []
        row = 0
        with self._open() as file:
            offset = len(file.readline()) if self._header else 0
            while data := file.read(self._block_bytes):
                data += file.readline()
                rows = data.count(b"\n") + (not data.endswith(b"\n"))
                blocks.append(_Block(offset, len(data), row, rows))
                offset, row = offset + len(data), row + rows
        return blocks

    @cached_property
    def _names(self) -> list[str]:
        """The file's columns, in its order."""
        if not self._header:
            return list(self._columns)
        with self._open() as file:
            names = [name.strip() for name in file.readline().decode("utf-8", "replace").split(self._delimiter)]
        for column in self._columns:
            if column not in names:
                place = f"{self._owner}: {self.url}: the first line"
                raise ValueError(f"{place} does not name a column {column!r}.{suggestion(column, names)}")
        return names

    def _open(self) -> IO[bytes]:
        filesystem, path = fsspec.url_to_fs(self.url)
        try:
            file: IO[bytes] = filesystem.open(path, "rb")
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ValueError(f"{self._owner}: path: there is no file {self.url!r}") from error
        return file

    def _parse(self, data: bytes, first_row: int, wanted: list[str]) -> pa.RecordBatch:
        types: dict[str, Any] = {name: self._columns[name] for name in wanted}
        try:
            table = csv.read_csv(
                pa.BufferReader(data),
                csv.ReadOptions(column_names=self._names, block_size=len(data) + 1, use_threads=False),
                csv.ParseOptions(delimiter=self._delimiter, quote_char=False, ignore_empty_lines=False),
                csv.ConvertOptions(
                    column_types=types, include_columns=wanted, null_values=self._nulls, strings_can_be_null=True
                ),
            )
        except pa.ArrowInvalid as error:
            place = _ROW.search(str(error))
            row = f", row {first_row + int(place[1]) - 1}" if place else ""
            reason = str(error) if place is None else str(error)[place.end() :].lstrip(": ")
            raise ValueError(f"{self._owner}: {self.url}{row}: {reason}") from error
        return table.combine_chunks().to_batches()[0]
