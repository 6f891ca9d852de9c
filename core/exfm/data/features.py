"""Arrow columns to numbers, table rows and histories: what training and serving compute of a row alike.

Legend: B rows, V values of all rows, E events, F dense features, G numbers of an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.data.column_types import list_lengths
from exfm.data.event_ages import US_PER_SECOND, event_ages_us
from exfm.data.ids import hash_rows, hashed, to_u64
from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    Feature,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
)

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bags:
    """Table rows (V,) of B examples, one after the other, and how many each has (B,)."""

    rows_V: I64
    lengths: I64


@dataclass(frozen=True)
class History:
    """Events of B examples, oldest first.

    Attributes:
        ids: table rows (E,) of each id field.
        numbers_EG: of each number field.
        lengths: events per example, (B,).
        ages: whole seconds from each event to its example, (E,); None where the feature has no times.
    """

    ids: tuple[I64, ...]
    numbers_EG: F32
    lengths: I64
    ages: I64 | None


def dense_numbers(rows: pa.RecordBatch, features: Sequence[Feature]) -> F32:
    """The dense features, transformed, in the order given: (B, F)."""
    dense = [feature for feature in features if isinstance(feature, DenseFeature)]
    columns = [_numbers(rows.column(feature.source_column), feature.transform) for feature in dense]
    return np.stack(columns, axis=1) if columns else np.zeros((rows.num_rows, 0), np.float32)


def bags(rows: pa.RecordBatch, feature: CategoricalFeature | MultiValuedFeature) -> Bags:
    """The table rows of one feature; a missing id has none."""
    column = rows.column(feature.source_column)
    if isinstance(feature, MultiValuedFeature):
        return Bags(_table_rows(column.flatten(), feature), list_lengths(column))
    ids = _table_rows(column, feature)
    # Not null_count: it overlooks a null that lies in a dictionary's values.
    present = column.is_valid().to_numpy(zero_copy_only=False)
    return Bags(ids if present.all() else ids[present], present.astype(np.int64))


def history(rows: pa.RecordBatch, feature: SequenceFeature, event_time: str) -> History:
    """Reads the newest events of a sequence, at most ``max_length`` for each row.

    Args:
        rows: with the feature's columns, and ``event_time`` where its times are no ages.
        feature: the sequence.
        event_time: the column of the rows' own times.
    """
    lengths = list_lengths(rows.column(feature.fields[0].source_column))
    kept = np.minimum(lengths, feature.max_length)
    newest: slice | npt.NDArray[np.bool_] = slice(None)
    if (kept < lengths).any():
        ends = np.cumsum(lengths)
        before_end = np.repeat(ends, lengths) - np.arange(ends[-1])
        newest = before_end <= feature.max_length
    ids: list[I64] = []
    numbers: list[F32] = []
    for field in feature.fields:
        events = rows.column(field.source_column).flatten()
        if field.kind == "dense":
            numbers.append(_numbers(events, field.transform)[newest])
        else:
            ids.append(_table_rows(events, field)[newest])
    numbers_EG = np.stack(numbers, axis=1) if numbers else np.zeros((int(kept.sum()), 0), np.float32)
    ages = None
    if feature.times is not None:
        ages = np.floor_divide(event_ages_us(rows, feature.times, event_time)[newest], US_PER_SECOND)
    return History(tuple(ids), numbers_EG, kept, ages)


def _numbers(column: pa.Array, transform: Literal["none", "log1p"]) -> F32:
    values = np.asarray(column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


def _table_rows(column: pa.Array, feature: CategoricalFeature | MultiValuedFeature | SequenceField) -> I64:
    keys = to_u64(column)
    if feature.ids == "row":
        return keys.view(np.int64)
    return hashed(keys) if feature.ids == "managed" else hash_rows(keys, feature.rows)
