"""Concatenates and compares rows of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa


def concat_batches(batches: Iterable[Any]) -> pa.Table:
    """Concatenates record batches without their metadata, which has their origin."""
    tables = []
    for batch in batches:
        check_batch(batch)
        tables.append(pa.Table.from_batches([batch.replace_schema_metadata(None)]))
    return concat_tables(tables)


def concat_tables(tables: Iterable[pa.Table]) -> pa.Table:
    """Concatenates the rows of tables."""
    # The columns and types of an empty table do not matter.
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
            row, (value, other) = next((row, pair) for row, pair in enumerate(pairs) if pair[0] != pair[1])
            raise AssertionError(f"{how}, row {row} has {name}={value} instead of {other}")


def fill_folder(fields: Any, folder: Path | None) -> Any:
    """Replaces ``{folder}`` by the folder's path in fields as written in YAML."""
    if isinstance(fields, str):
        return fields.replace("{folder}", str(folder))
    if isinstance(fields, Mapping):
        return {key: fill_folder(value, folder) for key, value in fields.items()}
    if isinstance(fields, list | tuple):
        return [fill_folder(value, folder) for value in fields]
    return fields
