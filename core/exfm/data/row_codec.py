"""Encodes checked rows as bytes that another process decodes without a copy."""

from __future__ import annotations

import pyarrow as pa
from pyarrow import types

from exfm.data.column_types import without_dictionary

_SCHEMA = b"exfm.schema"
_ALIGNMENT = 64  # Arrow's recommendation for buffers


def encode_rows(rows: pa.RecordBatch) -> pa.Buffer:
    """Encodes rows in Arrow's stream format; no rows take no bytes.

    Columns without any value take none either: rows that no model sees have few columns with values.
    """
    sink = pa.BufferOutputStream()
    if rows.num_rows:
        rows = _without_large_dictionaries(rows)
        schema = rows.schema
        filled = [name for name in schema.names if rows.column(name).null_count < rows.num_rows]
        if len(filled) < len(schema.names):
            rows = rows.select(filled).replace_schema_metadata({_SCHEMA: schema.serialize().to_pybytes()})
        with pa.ipc.new_stream(sink, rows.schema) as stream:
            stream.write_batch(rows)
        # The next process's rows follow in the same buffer of the receiver, and begin aligned.
        sink.write(bytes(-sink.tell() % _ALIGNMENT))
    return sink.getvalue()


def decode_rows(data: memoryview) -> pa.RecordBatch:
    """Decodes rows, at least a single row; the columns share the memory of ``data``."""
    with pa.ipc.open_stream(pa.py_buffer(data)) as stream:
        rows = stream.read_next_batch()
    metadata = rows.schema.metadata or {}
    if _SCHEMA not in metadata:
        return rows
    schema = pa.ipc.read_schema(pa.py_buffer(metadata[_SCHEMA]))
    present = set(rows.schema.names)
    columns: list[pa.Array] = []
    for field in schema:
        columns.append(rows.column(field.name) if field.name in present else pa.nulls(rows.num_rows, field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _without_large_dictionaries(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Replaces dictionaries with more values than there are rows, because a dictionary travels whole."""
    for index, field in enumerate(rows.schema):
        column = rows.column(index)
        is_list = types.is_list(field.type) and types.is_dictionary(field.type.value_type)
        if is_list or (types.is_dictionary(field.type) and len(column.dictionary) > rows.num_rows):
            rows = rows.set_column(index, field.name, without_dictionary(column))
    return rows
