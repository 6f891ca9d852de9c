"""Which columns a schema reads, and what the source itself needs of them: the core checks the rest, row by row."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Set

import pyarrow as pa
from pyarrow import types

import exfm
from exfm_plugins.parquet.times import TimeUnit


def columns_of(schema: exfm.FeatureSchema) -> list[str]:
    """The columns that hold a row of the schema, each once."""
    return list(dict.fromkeys(name for name in _columns(schema) if name))


def _columns(schema: exfm.FeatureSchema) -> Iterator[str]:
    yield from (schema.example_id, schema.event_time, schema.group, schema.domain)
    for feature in schema.features:
        fields = feature.fields if isinstance(feature, exfm.SequenceFeature) else (feature,)
        yield from (field.source_column for field in fields)
    for label in schema.labels:
        yield from (label.source_column, label.oracle)


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


def check_somewhere(url: str, columns: list[str], names: Set[str]) -> None:
    """Raises ValueError where a column is in none of the files, whose columns are ``names``: a slip in the schema."""
    for column in columns:
        if column not in names:
            raise ValueError(f"parquet: no file at {url!r} has a column {column!r}; {_alternatives(column, names)}")


def _alternatives(column: str, names: Set[str]) -> str:
    close = difflib.get_close_matches(column, sorted(names), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}there are {', '.join(sorted(names))}"
