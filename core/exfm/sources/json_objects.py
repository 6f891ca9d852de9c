"""JSON objects to Arrow: types are those that are asked for, and what cannot be read is found."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from pyarrow import json


class BadObjectError(ValueError):
    """One of several JSON objects cannot be read.

    Attributes:
        index: which one.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def parse_objects(objects: Sequence[bytes], schema: pa.Schema) -> pa.RecordBatch:
    """One row per JSON object, with the columns of the schema; what an object does not say is null.

    Raises:
        BadObjectError: a text is not one JSON object, or a value is not of its column's type.
    """
    rows, reasons = read_objects(objects, schema)
    for index, reason in enumerate(reasons):
        if reason is not None:
            raise BadObjectError(index, reason)
    return rows


def read_objects(objects: Sequence[bytes], schema: pa.Schema) -> tuple[pa.RecordBatch, list[str | None]]:
    """One row per JSON object, with the columns of the schema; what an object does not say is null.

    Returns:
        The rows, and why each could not be read that could not: all of such a row is null.
    """
    try:
        return _read(objects, schema), [None] * len(objects)
    except _UnreadableError as error:
        if len(objects) == 1:
            nulls = [pa.nulls(1, field.type) for field in schema]
            return pa.RecordBatch.from_arrays(nulls, schema=schema), [str(error)]
    half = len(objects) // 2
    first, first_reasons = read_objects(objects[:half], schema)
    second, second_reasons = read_objects(objects[half:], schema)
    return pa.concat_batches([first, second]), first_reasons + second_reasons


class _UnreadableError(Exception):
    """Some of several objects cannot be read."""


def _read(objects: Sequence[bytes], schema: pa.Schema) -> pa.RecordBatch:
    if not objects:
        return pa.RecordBatch.from_pylist([], schema)
    # Each begins an object, so that one that holds two is not hidden by a blank one beside it.
    if not all(text.lstrip().startswith(b"{") for text in objects):
        raise _UnreadableError("it is not a JSON object")
    lines = b"\n".join(objects)
    reading = json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parsing = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = json.read_json(pa.BufferReader(lines), reading, parsing)
    except pa.ArrowInvalid as error:
        raise _UnreadableError(str(error)) from error
    if table.num_rows != len(objects):
        raise _UnreadableError("it holds several objects")
    return table.select(schema.names).combine_chunks().to_batches()[0]
