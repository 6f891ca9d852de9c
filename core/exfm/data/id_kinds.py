"""Checks that a column's ids keep their type, because 5 and "5" are different ids with different table rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from exfm.data.column_types import IdKind, id_kind, id_tables, plain
from exfm.errors import ConfigError
from exfm.interfaces.data_source import Origin
from exfm.interfaces.schema import FeatureSchema


class SeenKind(NamedTuple):
    """The kind of a column's ids, and the file, row, column and Arrow type at which it was seen first."""

    kind: IdKind
    column_type: str


def check_id_kinds(
    batch: pa.RecordBatch, rows: pa.RecordBatch, schema: FeatureSchema, kinds: dict[str, IdKind]
) -> dict[str, SeenKind]:
    """Compares the kinds of ids in a batch with those of earlier batches, and between columns that share a table.

    Args:
        batch: the batch as its source yields it.
        rows: the batch in plain types; a column of it without any value has no kind.
        kinds: the kind of each column in earlier batches; this batch's kinds are added.

    Returns:
        The kinds that are added.

    Raises:
        ConfigError: a column held integers and now holds strings, or vice versa, or columns that share a table differ.
    """
    seen: dict[str, SeenKind] = {}
    for column, _ in id_tables(schema):
        kind = None
        if column in rows.schema.names:
            # Example ids are hashed in the rows, and have their type in the batch alone.
            values = plain(batch.column(column), "id") if column == schema.example_id else rows.column(column)
            kind = id_kind(values)
            # In plain types, bytes of equal length and other bytes are the same.
            if kind == "strings" and id_kind(batch.column(column)) == "bytes":
                kind = "bytes"
        if kind is not None and kind != kinds.get(column):
            seen[column] = SeenKind(kind, _column_type(batch, column))
    add_kinds(kinds, seen, schema)
    return seen


def add_kinds(kinds: dict[str, IdKind], seen: Mapping[str, SeenKind], schema: FeatureSchema) -> None:
    """Adds kinds of columns to those of earlier rows.

    Raises:
        ConfigError: a column held another kind, or columns that share a table differ.
    """
    columns_by_table: dict[str, str] = {}
    for column, table in id_tables(schema):
        before = kinds.get(column)
        if column in seen:
            kind, column_type = seen[column]
            if before is not None and kind != before:
                raise ConfigError(
                    f"{column_type}, and held {before} until now. 5 and '5' are different ids, as are a "
                    "UUID and its text: what was learned of one would be lost. Write the column in one type."
                )
            kinds[column] = kind
        if column not in kinds:
            continue
        # The first column of a table decides; a column without a table is compared with itself.
        other = columns_by_table.setdefault(table, column) if table else column
        if kinds[other] != kinds[column]:
            # Of two columns the error names the type of a column that these rows have.
            if column not in seen:
                column, other = other, column
            raise ConfigError(
                f"{seen[column].column_type}; it shares the table {table!r} with {other}, which holds "
                f"{kinds[other]}. 5 and '5' are different ids: write both columns in one type, or give each a table of "
                "its own."
            )


def _column_type(batch: pa.RecordBatch, column: str) -> str:
    """Names file, row, column and Arrow type, for the beginning of a message."""
    origin = Origin.from_batch(batch)
    return f"{origin.file}, row {origin.row}: {column}: the column holds {batch.schema.field(column).type}"
