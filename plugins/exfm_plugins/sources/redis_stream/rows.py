"""Converts JSON objects to Arrow, with equal types in every batch.

Legend: R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from exfm.sources import read_objects
from exfm_plugins.sources.redis_stream.entries import Entry


@dataclass(frozen=True)
class PlacedRows:
    """Holds rows, the time at which each is in the stream in microseconds, and the ids of their entries; (R,) each."""

    rows: pa.RecordBatch
    time_R: NDArray[np.int64]
    id_R: NDArray[np.str_]

    def take(self, selected: NDArray[np.int64] | NDArray[np.bool_]) -> PlacedRows:
        """Selects rows by their numbers or by a mask."""
        numbers = np.flatnonzero(selected) if selected.dtype == bool else selected
        return PlacedRows(self.rows.take(pa.array(numbers)), self.time_R[numbers], self.id_R[numbers])

    def join(self, later: PlacedRows) -> PlacedRows:
        """Merges rows of later entries by time; at equal times rows stay in the order of entries."""
        joined = PlacedRows(
            pa.concat_batches([self.rows, later.rows]),
            np.concatenate([self.time_R, later.time_R]),
            np.concatenate([self.id_R, later.id_R]),
        )
        return joined.take(np.argsort(joined.time_R, kind="stable"))


def parse(entries: Sequence[Entry], schema: pa.Schema, field: str) -> tuple[pa.RecordBatch, list[str | None]]:
    """Parses the rows of some entries; columns that a row lacks are null.

    Returns:
        The rows, and for each entry without a row the reason: it lacks the field, or its field is not a JSON object of
        these types.
    """
    # An entry without the field parses as an empty object, so that rows and entries stay aligned.
    rows, reasons = read_objects([entry.value or b"{}" for entry in entries], schema)
    for number, entry in enumerate(entries):
        if entry.value is None:
            reasons[number] = f"it has no field {field!r}"
        elif reasons[number] is not None:
            reasons[number] = f"field {field!r} is not a row: {reasons[number]}"
    return rows, reasons
