"""JSON objects to Arrow, with types that are the same for every batch.

Legend: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import exfm
from exfm.sources import read_objects
from exfm_plugins.sources.redis_stream.entries import Entry


@dataclass(frozen=True)
class PlacedRows:
    """Rows, the time at which each stands in the stream in microseconds, and the ids of their entries; (R,) each."""

    rows: pa.RecordBatch
    place_R: NDArray[np.int64]
    id_R: NDArray[np.str_]

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> PlacedRows:
        """Some of them: their numbers, or a mask."""
        numbers = np.flatnonzero(which) if which.dtype == bool else which
        return PlacedRows(self.rows.take(pa.array(numbers)), self.place_R[numbers], self.id_R[numbers])

    def join(self, later: PlacedRows) -> PlacedRows:
        """These and those of later entries, by their place in the stream, ties in the order of entries."""
        joined = PlacedRows(
            pa.concat_batches([self.rows, later.rows]),
            np.concatenate([self.place_R, later.place_R]),
            np.concatenate([self.id_R, later.id_R]),
        )
        return joined.take(np.argsort(joined.place_R, kind="stable"))


def arrow_schema(schema: exfm.schema.FeatureSchema, strings: Sequence[str]) -> pa.Schema:
    """The type of every column: whole numbers for ids but those named in ``strings``, floats for dense numbers.

    Raises:
        ValueError: ``strings`` names a column that holds no ids.
    """
    types: dict[str, pa.DataType] = {schema.event_time: pa.int64()}
    ids: list[str] = [column for column in (schema.group, schema.domain) if column]
    for feature in schema.features:
        if isinstance(feature, exfm.schema.DenseFeature):
            types[feature.source_column] = pa.float64()
        elif isinstance(feature, exfm.schema.SequenceFeature):
            for field in feature.fields:
                types[field.source_column] = pa.list_(pa.float64() if field.kind == "dense" else pa.int64())
        else:
            ids.append(feature.source_column)
            if feature.kind == "multi_valued":
                types[feature.source_column] = pa.list_(pa.int64())
    for label in schema.labels:
        types |= {label.source_column: pa.int64()} | ({label.oracle: pa.float64()} if label.oracle else {})
    types = dict.fromkeys([*ids, schema.example_id], pa.int64()) | types
    for column in strings:
        if column not in types or column == schema.example_id or column == schema.event_time:
            raise ValueError(f"redis_stream: strings: the schema reads no ids from a column {column!r}")
        types[column] = pa.list_(pa.string()) if pa.types.is_list(types[column]) else pa.string()
    return pa.schema(types)


def parse(entries: Sequence[Entry], schema: pa.Schema, field: str) -> tuple[pa.RecordBatch, list[str | None]]:
    """The rows of some entries; what an entry does not say is null.

    Returns:
        The rows, and why an entry has none: it has no such field, or it is not one JSON object of these types.
    """
    rows, reasons = read_objects([entry.value or b"{}" for entry in entries], schema)
    for number, entry in enumerate(entries):
        if entry.value is None:
            reasons[number] = f"it has no field {field!r}"
        elif reasons[number] is not None:
            reasons[number] = f"field {field!r} is not a row: {reasons[number]}"
    return rows, reasons
