"""Checks the columns of files that the source depends on; the core checks all others, row by row."""

from __future__ import annotations

from collections.abc import Sequence, Set

import pyarrow as pa

from exfm.components import suggestion
from exfm.sources import TimeUnit, check_time_type


def check_time(path: str, schema: pa.Schema, column: str, unit: TimeUnit) -> None:
    """Raises ValueError if a file has no column of the time, because its rows then have no position in the stream."""
    if column not in schema.names:
        raise ValueError(f"parquet: {path} has no column {column!r}.{suggestion(column, schema.names)}")
    check_time_type(f"parquet: {path}", column, schema.field(column).type, unit)


def check_somewhere(url: str, columns: Sequence[str], names: Set[str]) -> None:
    """Raises ValueError if a column is in none of the files, whose columns are ``names``: a typo in the schema."""
    for column in columns:
        if column not in names:
            raise ValueError(f"parquet: no file at {url!r} has a column {column!r}.{suggestion(column, names)}")
