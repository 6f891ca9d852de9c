"""Computes numbers, table rows and histories from Arrow columns, the same for training and for serving.

Legend: B rows, V values of all rows, W width of a vector, E events, F dense features, G numbers of an event.
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
from exfm.interfaces.derived_features import BucketizedFeature, CrossedFeature
from exfm.interfaces.schema import (
    BagFeature,
    CategoricalFeature,
    DenseFeature,
    Feature,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
)
from exfm.interfaces.vector_feature import VectorFeature
from exfm.sources.ids import hash_63, hash_rows, mix, to_u64

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bags:
    """Table rows (V,) of B examples in their order.

    Attributes:
        lengths: the number of rows of each example, (B,).
        weights_V: weights of the rows, with the sum 1 or 0 in each example; None where the feature has none.
    """

    rows_V: I64
    lengths: I64
    weights_V: F32 | None = None


@dataclass(frozen=True)
class History:
    """Events of B examples, oldest first.

    Attributes:
        ids: table rows (E,) of each id field.
        numbers_EG: the numbers of each dense field.
        lengths: events per example, (B,).
        ages: whole seconds from each event to its example, (E,); None where the feature has no times.
    """

    ids: tuple[I64, ...]
    numbers_EG: F32
    lengths: I64
    ages: I64 | None


def dense_numbers(rows: pa.RecordBatch, features: Sequence[Feature]) -> F32:
    """Returns the dense features among ``features``, transformed, in their order: (B, F)."""
    dense = [feature for feature in features if isinstance(feature, DenseFeature)]
    columns = [_transformed(rows.column(feature.source_column), feature.transform) for feature in dense]
    return np.stack(columns, axis=1) if columns else np.zeros((rows.num_rows, 0), np.float32)


def vectors(rows: pa.RecordBatch, feature: VectorFeature) -> F32:
    """Returns the vector of each row, (B, W); a row of NaN where it is missing."""
    column = rows.column(feature.source_column)
    numbers = np.asarray(column.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))
    present = column.is_valid().to_numpy(zero_copy_only=False)
    if present.all():
        return numbers.reshape(rows.num_rows, feature.width)
    vectors_BW = np.full((rows.num_rows, feature.width), np.nan, np.float32)
    vectors_BW[present] = numbers.reshape(-1, feature.width)
    return vectors_BW


def bags(rows: pa.RecordBatch, feature: BagFeature) -> Bags:
    """Returns the table rows of a feature; a missing id has none."""
    if isinstance(feature, BucketizedFeature):
        return Bags(_buckets(rows.column(feature.source_column), feature.boundaries), np.ones(rows.num_rows, np.int64))
    if isinstance(feature, CrossedFeature):
        return _cross(rows, feature)
    column = rows.column(feature.source_column)
    if isinstance(feature, MultiValuedFeature):
        lengths = list_lengths(column)
        weights_V = None
        if feature.weights is not None:
            weights_V = _shares(rows.column(feature.weights).flatten(), lengths)
        return Bags(_to_table_rows(column.flatten(), feature), lengths, weights_V)
    # is_valid and not null_count, because null_count overlooks a null among a dictionary's values.
    valid = column.is_valid()
    present = valid.to_numpy(zero_copy_only=False)
    if not present.all():
        # Hashed without the nulls, which are many where no model sees most of the rows.
        column = column.filter(valid)
    return Bags(_to_table_rows(column, feature), present.astype(np.int64))


def _buckets(column: pa.Array, boundaries: Sequence[float]) -> I64:
    """Returns the bucket of each number, which is how many boundaries it reaches; missing numbers have the last."""
    # float32 for both, because the same number may come in single and in double precision.
    values = np.asarray(column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))
    numbers = np.searchsorted(np.array(boundaries, np.float32), values, side="right").astype(np.int64)
    return np.where(np.isnan(values), len(boundaries) + 1, numbers)


def _cross(rows: pa.RecordBatch, feature: CrossedFeature) -> Bags:
    """Returns the table rows of a cross: the ids of its features are mixed, one after another; see ``HASHING``."""
    crossed = np.zeros(rows.num_rows, np.uint64)
    present = np.ones(rows.num_rows, bool)
    for read in feature.parts:
        column = rows.column(read.column)
        if read.boundaries is None:
            keys = to_u64(column)
            present &= column.is_valid().to_numpy(zero_copy_only=False)
        else:
            keys = _buckets(column, read.boundaries).view(np.uint64)
        # Not symmetric, because a pair (1, 2) and a pair (2, 1) are different.
        crossed = mix(crossed ^ keys)
    return Bags(hash_rows(crossed[present], feature.rows), present.astype(np.int64))


def equal_weights(lengths: I64) -> F32:
    """Returns weights (V,) that make a weighted sum of each example's rows their mean."""
    return np.repeat(1 / np.maximum(lengths, 1), lengths).astype(np.float32)


def _shares(weights: pa.Array, lengths: I64) -> F32:
    """Divides weights by their sum in each example; all are 0 where the sum is 0."""
    weights_V = np.asarray(weights.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    example_V = np.repeat(np.arange(lengths.size), lengths)
    # bincount adds example by example, so that no example's sum depends on the rows before it.
    sums_V = np.bincount(example_V, weights=weights_V, minlength=lengths.size)[example_V]
    shares_V = np.divide(weights_V, sums_V, out=np.zeros_like(weights_V), where=sums_V > 0)
    return np.asarray(shares_V.astype(np.float32))


def history(rows: pa.RecordBatch, feature: SequenceFeature, event_time: str) -> History:
    """Returns the newest events of a sequence, at most ``max_length`` for each row.

    Args:
        rows: with the feature's columns, and ``event_time`` where its times are no ages.
        feature: the sequence.
        event_time: the column of the rows' times.
    """
    lengths = list_lengths(rows.column(feature.fields[0].source_column))
    kept = np.minimum(lengths, feature.max_length)
    # A slice of everything copies nothing; a mask is built for batches with a history that is too long.
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
            numbers.append(_transformed(events, field.transform)[newest])
        else:
            ids.append(_to_table_rows(events, field)[newest])
    numbers_EG = np.zeros((int(kept.sum()), 0), np.float32)
    if numbers:
        numbers_EG = np.stack(numbers, axis=1)
    ages = None
    if feature.times is not None:
        # Whole seconds: rounded down, so that an event never seems older than it is.
        ages = np.floor_divide(event_ages_us(rows, feature.times, event_time)[newest], US_PER_SECOND)
    return History(tuple(ids), numbers_EG, kept, ages)


def _transformed(column: pa.Array, transform: Literal["none", "log1p"]) -> F32:
    """Returns a column's numbers in single precision, transformed."""
    # float32 before the logarithm: serving gets numbers in single precision, and must compute the same bits.
    values = np.asarray(column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False))
    if transform == "log1p":
        logarithms: F32 = np.sign(values) * np.log1p(np.abs(values))
        return logarithms
    return values


def _to_table_rows(column: pa.Array, feature: CategoricalFeature | MultiValuedFeature | SequenceField) -> I64:
    """Maps ids to rows of the feature's table; managed ids to the 63 bits that the model finds rows for."""
    keys = to_u64(column)
    if feature.ids == "row":
        return keys.view(np.int64)
    if feature.ids == "managed":
        return hash_63(keys)
    return hash_rows(keys, feature.rows)
