"""Lists the Parquet files of a log, and reads their footers: columns, numbers of rows, bounds of times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from exfm.errors import ConfigError
from exfm.sources.files import list_files
from exfm.sources.row_groups.bounds import stored_unit
from exfm.sources.row_groups.footers import FOOTERS_AT_ONCE
from exfm.sources.times import to_microseconds

_HEADS = ("csv", "tsv", "json", "jsonl", "ndjson", "txt", "gz", "zip")
"""Endings of files that are no Parquet, whatever their content."""

Bounds = tuple[int, int]
"""The least and the largest value of a column in a row group."""


@dataclass(frozen=True)
class Footer:
    """Describes a file.

    Attributes:
        group_rows: rows of each row group.
        bounds: of each row group with statistics, by column: timestamps in microseconds, and integers.
    """

    path: str
    schema: pa.Schema
    group_rows: tuple[int, ...]
    bounds: Mapping[str, Sequence[Bounds]]


@dataclass(frozen=True)
class Log:
    """Describes the files of a log, in the order of their names."""

    url: str
    footers: tuple[Footer, ...]

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(sum(footer.group_rows) for footer in self.footers)

    @property
    def path_columns(self) -> tuple[str, ...]:
        """Names of the columns that stand in the folders of files, as in ``dt=2024-03-01``."""
        names: dict[str, None] = {}
        for footer in self.footers:
            folders = footer.path.split("/")[:-1]
            names.update(dict.fromkeys(folder.partition("=")[0] for folder in folders if "=" in folder))
        return tuple(names)

    def bounds(self, column: str) -> list[Bounds]:
        """Returns the bounds of a column in all row groups that have statistics of it."""
        bounds: list[Bounds] = []
        for footer in self.footers:
            bounds += footer.bounds.get(column, ())
        return bounds

    def open(self, path: str) -> pq.ParquetFile:
        """Opens a file."""
        filesystem, _ = fsspec.url_to_fs(self.url)
        return pq.ParquetFile(path, filesystem=filesystem)


def read_log(url: str) -> Log:
    """Reads the footers of the files at a path: a folder with its sub-folders, a file or a glob; any fsspec URL.

    Raises:
        ConfigError: there is no file, a file is no Parquet, or there are no rows.
    """
    # By the ending first, because the error of a Parquet reader does not say how to convert another format.
    ending = url.rpartition(".")[2].lower()
    if ending in _HEADS:
        raise ConfigError(
            f"{url}: the log is read as Parquet, and a .{ending} file is none. Convert it first: "
            "pyarrow.parquet.write_table(pyarrow.csv.read_csv(FILE), 'log.parquet'), or pandas' to_parquet"
        )
    try:
        filesystem, root = fsspec.url_to_fs(url)
        files = list_files(filesystem, root, ".parquet")
        if not files:
            problem = "holds no file that ends in .parquet" if filesystem.exists(root) else "is no file, folder or glob"
            raise ConfigError(f"{url}: it {problem}")
        # In parallel, because each footer takes a round trip to an object store.
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            footers = tuple(pool.map(lambda path: _read_footer(filesystem, path), files))
    except (ImportError, OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{url}: it cannot be read: {' '.join(str(error).split())}") from error
    log = Log(url, footers)
    if not log.rows:
        raise ConfigError(f"{url}: the files have no rows")
    return log


def _read_footer(filesystem: Any, path: str) -> Footer:
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path}: it cannot be read as Parquet: {error}") from error
    groups = list(map(metadata.row_group, range(metadata.num_row_groups)))
    # By path, because a nested field has several leaves: positions of leaves and of fields differ.
    indices = {metadata.schema.column(index).path: index for index in range(metadata.num_columns)}
    bounds: dict[str, list[Bounds]] = {}
    for field in schema:
        if field.name in indices and (types.is_timestamp(field.type) or types.is_integer(field.type)):
            index = indices[field.name]
            unit = stored_unit(metadata.schema.column(index)) if types.is_timestamp(field.type) else "us"
            bounds[field.name] = [bound for group in groups for bound in _group_bounds(group.column(index), unit)]
    return Footer(path, schema, tuple(group.num_rows for group in groups), bounds)


def _group_bounds(chunk: Any, unit: str) -> list[Bounds]:
    """Returns the bounds of a column in a row group, in a list; an empty list without statistics."""
    statistics = chunk.statistics
    # Timestamps of 96 bits have no unit, and no statistics to rely on.
    if not unit or statistics is None or not statistics.has_min_max or not isinstance(statistics.min_raw, int):
        return []
    least, largest = to_microseconds(np.array([statistics.min_raw, statistics.max_raw], np.int64), unit)
    return [(int(least), int(largest))]
