"""Rows of a stream, compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa


def table_of(batches: Iterable[Any]) -> pa.Table:
    """All rows of some record batches, without what marks their origin."""
    tables = []
    for batch in batches:
        check_batch(batch)
        tables.append(pa.Table.from_batches([batch.replace_schema_metadata(None)]))
    return joined(tables)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """The rows of some tables, one after the other."""
    with_rows = [table for table in tables if table.num_rows]
    return pa.concat_tables(with_rows, promote_options="permissive") if with_rows else pa.table({})


def check_batch(batch: object) -> None:
    """Raises AssertionError unless it is a record batch."""
    assert isinstance(batch, pa.RecordBatch), f"read() must yield pyarrow.RecordBatch, not {type(batch).__name__}"


def check_rows(actual: pa.Table, expected: pa.Table, how: str) -> None:
    """Raises AssertionError unless both tables have the same rows in the same order."""
    counts = f"{actual.num_rows} rows instead of {expected.num_rows}"
    assert actual.num_rows == expected.num_rows, f"{how}, it has {counts}"
    for name in expected.column_names if expected.num_rows else ():
        assert name in actual.column_names, f"{how}, it has no column {name!r}"
        if not actual[name].equals(expected[name]):
            pairs = zip(actual[name].to_pylist(), expected[name].to_pylist(), strict=True)
            row, (one, other) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
            raise AssertionError(f"{how}, row {row} has {name}={one} instead of {other}")


def filled(fields: Any, folder: Path | None) -> Any:
    """Fields as written in YAML, with the folder's path in place of ``{folder}``."""
    if isinstance(fields, str):
        return fields.replace("{folder}", str(folder))
    if isinstance(fields, Mapping):
        return {key: filled(value, folder) for key, value in fields.items()}
    return [filled(one, folder) for one in fields] if isinstance(fields, list | tuple) else fields
