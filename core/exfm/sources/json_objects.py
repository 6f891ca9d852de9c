"""Reads JSON objects to Arrow with the types of a schema, and finds the objects that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from pyarrow import json


class BadObjectError(ValueError):
    """A JSON object among several cannot be read.

    Attributes:
        index: position of the object.
    """

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


def parse_objects(objects: Sequence[bytes], schema: pa.Schema) -> pa.RecordBatch:
    """Parses a row per JSON object, with the columns of the schema; a key that an object lacks is null.

    Raises:
        BadObjectError: a text is not a single JSON object, or a value is not of its column's type.
    """
    rows, reasons = read_objects(objects, schema)
    for index, reason in enumerate(reasons):
        if reason is not None:
            raise BadObjectError(index, reason)
    return rows


def read_objects(objects: Sequence[bytes], schema: pa.Schema) -> tuple[pa.RecordBatch, list[str | None]]:
    """Reads a row per JSON object, with the columns of the schema; a key that an object lacks is null.

    Returns:
        The rows, and for each row the reason why its object cannot be read, or None. All columns of a row with a
        reason are null.
    """
    # Arrow does not say which object is bad, so halves are read again: few calls where bad objects are few.
    try:
        return _parse_lines(objects, schema), [None] * len(objects)
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


def _parse_lines(objects: Sequence[bytes], schema: pa.Schema) -> pa.RecordBatch:
    """Parses all objects at once.

    Raises:
        _UnreadableError: an object cannot be read.
    """
    if not objects:
        return pa.RecordBatch.from_pylist([], schema)
    # Each text begins an object, because a text with two objects could hide a blank text from the count below.
    if not all(text.lstrip().startswith(b"{") for text in objects):
        raise _UnreadableError("it is not a JSON object")
    lines = b"\n".join(objects)
    # A single block, because Arrow refuses an object that is longer than a block.
    reading = json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parsing = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = json.read_json(pa.BufferReader(lines), reading, parsing)
    except pa.ArrowInvalid as error:
        raise _UnreadableError(str(error)) from error
    if table.num_rows != len(objects):
        raise _UnreadableError("it holds several objects")
    return table.select(schema.names).combine_chunks().to_batches()[0]
