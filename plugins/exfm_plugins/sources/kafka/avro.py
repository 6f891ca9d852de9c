"""Decodes Avro records by the schema in the experiment file, message by message."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from exfm.components import suggestion
from exfm_plugins.sources.kafka.values import Decoder

_HEADER_BYTES = 5
_TYPES = {
    "int": pa.int64(),
    "long": pa.int64(),
    "float": pa.float64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "string": pa.string(),
    "enum": pa.string(),
    "bytes": pa.binary(),
}
_TIMES = ("timestamp-millis", "timestamp-micros")


class AvroDecoder(Decoder):
    """Decodes the columns of Avro records; fields that no column needs are passed over.

    Args:
        schema: the record's schema, by which messages were written.
        columns: the fields that are decoded.
        schema_id: the id in the header of five bytes that each message begins with; None without header.

    Raises:
        ValueError: fastavro is not installed, the schema is none, or lacks a column.
    """

    def __init__(self, schema: Mapping[str, Any], columns: Sequence[str], schema_id: int | None) -> None:
        try:
            import fastavro
        except ModuleNotFoundError as error:
            raise ValueError("kafka: format: avro needs the package fastavro: pip install 'exfm[kafka]'") from error
        fields = _fields(schema)
        types: list[tuple[str, pa.DataType]] = []
        for column in columns:
            if column not in fields:
                raise ValueError(f"kafka: avro_schema: it has no field {column!r}.{suggestion(column, fields)}")
            types.append((column, _arrow_type(fields[column]["type"], column)))
        super().__init__(pa.schema(types))
        self._read = fastavro.schemaless_reader
        try:
            self._written = fastavro.parse_schema(dict(schema))
        except Exception as error:
            # fastavro has many exceptions for a wrong schema, without a common base.
            raise ValueError(f"kafka: avro_schema: {type(error).__name__}: {error}") from error
        try:
            self._kept = fastavro.parse_schema({**schema, "fields": [fields[column] for column in columns]})
        except fastavro.schema.UnknownType:
            # A column has a type that another field names, so that records are read whole.
            self._kept = self._written
        self._header: bytes | None = None
        if schema_id is not None:
            self._header = b"\0" + schema_id.to_bytes(4, "big")

    def decode_present(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, list[str | None]]:
        """Decodes records."""
        records: list[Mapping[str, Any]] = []
        reasons: list[str | None] = []
        for value in values:
            record, reason = self._record(value)
            records.append(record)
            reasons.append(reason)
        columns = [pa.array([record.get(field.name) for record in records], field.type) for field in self.types]
        return pa.RecordBatch.from_arrays(columns, schema=self.types), reasons

    def _record(self, value: bytes) -> tuple[Mapping[str, Any], str | None]:
        """Decodes a record, or returns an empty record and the reason why it cannot be read."""
        stream = io.BytesIO(value)
        if self._header is not None and stream.read(_HEADER_BYTES) != self._header:
            return {}, "it does not begin with Confluent's header and schema_id"
        try:
            record = self._read(stream, self._written, self._kept)
        except Exception as error:
            # Any bytes may come, and fastavro raises EOFError, IndexError, OverflowError, UnicodeDecodeError and more.
            return {}, f"it is not a record of avro_schema ({type(error).__name__})"
        if stream.read(1):
            return {}, "it is longer than a record of avro_schema"
        assert isinstance(record, Mapping)
        return record, None


def _fields(schema: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the fields of a record's schema by name."""
    fields = schema.get("fields")
    if schema.get("type") != "record" or not isinstance(fields, list):
        raise ValueError("kafka: avro_schema: it must be that of a record: {type: record, name: ..., fields: [...]}")
    by_name: dict[str, dict[str, Any]] = {}
    for field in fields:
        if not isinstance(field, Mapping) or "name" not in field or "type" not in field:
            raise ValueError(f"kafka: avro_schema: a field is {{name: ..., type: ...}}, not {field!r}")
        by_name[str(field["name"])] = dict(field)
    return by_name


def _arrow_type(kind: Any, column: str) -> pa.DataType:
    """Returns the type of a field; a union may be of null and another type only."""
    if isinstance(kind, list):
        others = [each for each in kind if each != "null"]
        if len(others) == 1:
            return _arrow_type(others[0], column)
    elif isinstance(kind, Mapping):
        logical = kind.get("logicalType")
        if logical in _TIMES:
            return pa.timestamp("us", "UTC")
        if kind.get("type") == "array":
            return pa.list_(_arrow_type(kind["items"], column))
        if logical is None:
            return _arrow_type(kind.get("type"), column)
    elif kind in _TYPES:
        return _TYPES[kind]
    raise ValueError(
        f"kafka: avro_schema: field {column!r} is {kind!r}, which is no column. Allowed: {', '.join(_TYPES)}, an array "
        f"of these, a union of null with one of these, and long as {' or '.join(_TIMES)}"
    )
