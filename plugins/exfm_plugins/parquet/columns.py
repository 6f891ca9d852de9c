"""What the source itself needs of the files' columns: the core checks the rest, row by row."""

from __future__ import annotations

import difflib
from collections.abc import Sequence, Set

import pyarrow as pa
from pyarrow import types

from exfm.sources import TimeUnit


def check_time(path: str, schema: pa.Schema, column: str, unit: TimeUnit) -> None:
    """Raises ValueError where a file does not have the time, without which its rows have no place in the stream."""
    if column not in schema.names:
        raise ValueError(f"parquet: {path} has no column {column!r}; {_alternatives(column, set(schema.names))}")
    kind = schema.field(column).type
    if unit == "timestamp" and not types.is_timestamp(kind):
        wanted = "a timestamp (for an integer, set time_unit to s, ms, us or ns)"
    elif unit != "timestamp" and not types.is_integer(kind):
        wanted = "an integer, since time_unit is set"
    else:
        return
    raise ValueError(f"parquet: {path}: column {column!r} is {kind}; expected {wanted}")


def check_somewhere(url: str, columns: Sequence[str], names: Set[str]) -> None:
    """Raises ValueError where a column is in none of the files, whose columns are ``names``: a slip in the schema."""
    for column in columns:
        if column not in names:
            raise ValueError(f"parquet: no file at {url!r} has a column {column!r}; {_alternatives(column, names)}")


def _alternatives(column: str, names: Set[str]) -> str:
    close = difflib.get_close_matches(column, sorted(names), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}there are {', '.join(sorted(names))}"
