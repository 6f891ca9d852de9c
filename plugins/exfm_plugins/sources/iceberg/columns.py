"""Finds the columns of an Iceberg table in its data files, by field id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from exfm.components import suggestion
from exfm.sources import Footer


@dataclass(frozen=True)
class TableColumn:
    """Describes a column of a table.

    Attributes:
        field_id: stays when the column is renamed.
        kind: the type of its values.
        required: whether each file must have it.
        default: the value of rows of files that were written before the column was added.
    """

    name: str
    field_id: int
    kind: pa.DataType
    required: bool
    default: Any


def table_columns(schema: Any, columns: Sequence[str], location: str) -> dict[str, TableColumn]:
    """Finds columns in the schema of a table.

    Args:
        schema: pyiceberg's.
        columns: names of the columns.
        location: the source and the table, for messages.

    Raises:
        ValueError: the table has no such column.
    """
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    fields = {field.name: field for field in schema.fields}
    described: dict[str, TableColumn] = {}
    for name in columns:
        if name not in fields:
            raise ValueError(f"{location} has no column {name!r}.{suggestion(name, fields)}")
        field = fields[name]
        kind = schema_to_pyarrow(field.field_type, include_field_ids=False)
        # Tables of format 3 have defaults, which older releases of pyiceberg do not know.
        default = getattr(field, "initial_default", None)
        described[name] = TableColumn(name, field.field_id, kind, field.required, default)
    return described


def stored_names(footer: Footer, columns: Mapping[str, TableColumn], mapping: Any) -> dict[str, str]:
    """Returns the name that a file has for each of a table's columns that it has.

    Args:
        footer: of the file.
        columns: columns of the table.
        mapping: the table's name mapping, for files without field ids, which other systems wrote; may be None.

    Raises:
        ValueError: the file has no field ids, and the table no name mapping.
    """
    names: dict[int, str] = {}
    if None not in footer.field_ids:
        names = {field_id: name for field_id, name in zip(footer.field_ids, footer.names, strict=True) if field_id}
    elif mapping is None:
        raise ValueError("it has no field ids, and the table no schema.name-mapping.default")
    else:
        present = set(footer.names)
        for mapped in mapping.root:
            for name in mapped.names:
                if name in present and mapped.field_id is not None:
                    names[mapped.field_id] = name
    return {column.name: names[column.field_id] for column in columns.values() if column.field_id in names}


def missing_values(
    columns: Mapping[str, TableColumn], stored: Mapping[str, str], partition: Mapping[int, Any], file: str
) -> dict[str, pa.Scalar]:
    """Returns the value of all rows of a file for each column that it lacks: its partition's, the default, or null.

    Args:
        columns: columns of the table.
        stored: the columns that the file has.
        partition: values of the file's partition by field id, of columns that partition the table as they are.
        file: for messages.

    Raises:
        ValueError: a column must be in each file.
    """
    values: dict[str, pa.Scalar] = {}
    for column in columns.values():
        if column.name in stored:
            continue
        value = partition.get(column.field_id)
        if value is None:
            value = column.default
        if value is None and column.required:
            raise ValueError(f"{file} lacks the column {column.name!r}, which the table requires")
        values[column.name] = pa.scalar(value, column.kind)
    return values


def partition_values(file: Any, specs: Mapping[int, Any]) -> dict[int, Any]:
    """Returns the values of a data file's partition by field id, of columns that partition the table as they are.

    Args:
        file: pyiceberg's data file.
        specs: the table's partition specs by id.
    """
    from pyiceberg.transforms import IdentityTransform

    spec = specs.get(file.spec_id)
    values: dict[int, Any] = {}
    for position, field in enumerate(spec.fields if spec is not None else ()):
        if isinstance(field.transform, IdentityTransform):
            values[field.source_id] = file.partition[position]
    return values


def cast_column(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Casts a column of a file to its type in the table, which may have been widened since."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Without the nullability and the name of the element, in which files differ.
        kind = pa.list_(kind.value_type)
    if column.type == kind:
        return column
    # As pyiceberg does: nanoseconds of a file become the table's microseconds.
    return column.cast(kind, safe=not pa.types.is_timestamp(kind))
