"""Ids keep their type: 5 and "5" are different ids, and what was learned of one is not known of the other."""

from __future__ import annotations

import pyarrow as pa

from exfm.data.column_types import IdKind, id_kind, id_tables
from exfm.errors import ConfigError
from exfm.interfaces.data_source import Origin
from exfm.interfaces.schema import FeatureSchema


def check_id_kinds(
    batch: pa.RecordBatch, rows: pa.RecordBatch, schema: FeatureSchema, known: dict[str, IdKind]
) -> None:
    """Compares what columns of ids hold with what they have held, and with the other columns of their table.

    Args:
        batch: as the source gave it.
        rows: the same in plain types; a column of it that holds no value has no kind.
        known: what each column has held until now; added to.

    Raises:
        ConfigError: a column held integers and now holds strings, or the other way round, or columns that share a
            table differ.
    """
    of_table: dict[str, str] = {}
    for column, table in id_tables(schema):
        kind = id_kind(rows.column(column)) if column in rows.schema.names else None
        before = known.get(column)
        if kind is not None and before is not None and kind != before:
            raise ConfigError(
                f"{_place(batch, column)}, and held {before} until now. 5 and '5' are different ids: what was learned "
                "of one would be lost. Write the column in one type."
            )
        kind = kind or before
        if kind is None:
            continue
        known[column] = kind
        other = of_table.setdefault(table, column) if table else column
        if known[other] != kind:
            raise ConfigError(
                f"{_place(batch, column)}; it shares the table {table!r} with {other}, which holds {known[other]}. "
                "5 and '5' are different ids: write both columns in one type, or give each a table of its own."
            )


def _place(batch: pa.RecordBatch, column: str) -> str:
    origin = Origin.of(batch)
    return f"{origin.file}, row {origin.row}: {column}: the column holds {batch.schema.field(column).type}"
