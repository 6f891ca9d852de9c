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
    for index, text in enumerate(objects):
        # Each begins an object, so that one that holds two is not hidden by a blank one beside it.
        if not text.lstrip().startswith(b"{"):
            raise BadObjectError(index, "it is not a JSON object")
    lines = b"\n".join(objects)
    reading = json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    parsing = json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    problem = "it holds several objects"
    try:
        table = json.read_json(pa.BufferReader(lines), reading, parsing)
    except pa.ArrowInvalid as error:
        problem = str(error)
    else:
        if table.num_rows == len(objects):
            return table.select(schema.names).combine_chunks().to_batches()[0]
    if len(objects) == 1:
        raise BadObjectError(0, problem)
    half = len(objects) // 2
    parse_objects(objects[:half], schema)
    try:
        parse_objects(objects[half:], schema)
    except BadObjectError as error:
        raise BadObjectError(half + error.index, str(error)) from error
    raise AssertionError("objects that can be read apart can be read together")
