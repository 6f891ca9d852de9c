"""Finds the rows of a record batch that break the schema, column by column, without a loop over rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exfm.data.ids import id_type_ok
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.data_source import Origin
from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    Feature,
    FeatureSchema,
    Label,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
)

Mask = npt.NDArray[np.bool_]
Problem = tuple[Mask, str, str]
"""Which rows are bad, in which column, and why."""


@dataclass
class RowChecker:
    """Checks batches in stream order; keeps the newest time seen and the count of skipped rows.

    Args:
        schema: what the rows must be.
        skip: whether bad rows are left out and counted, or stop the run.
        newest_us: the time before which no row may lie, microseconds.
    """

    schema: FeatureSchema
    skip: bool
    newest_us: int
    skipped: int = 0

    def check(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch's good rows, with the schema's columns in an order that is always the same.

        Raises:
            ConfigError: there is a bad row and ``skip`` is off; the message names file, row, column and value.
        """
        bad = np.zeros(batch.num_rows, bool)
        for mask, column, reason in self._problems(batch):
            if not self.skip and mask.any():
                raise ConfigError(_message(batch, int(mask.argmax()), column, reason))
            bad |= mask
        self.skipped += int(bad.sum())
        good = batch.filter(pa.array(~bad)) if bad.any() else batch
        return good.select(self._names) if good.num_rows else good

    @cached_property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(column for column, _, _ in _columns(self.schema)))

    def _problems(self, batch: pa.RecordBatch) -> Iterator[Problem]:
        for column, type_ok, wanted in _columns(self.schema):
            if column not in batch.schema.names:
                near = suggestion(column, batch.schema.names)
                yield np.ones(batch.num_rows, bool), column, f"the column is missing.{near}"
                return
            kind = batch.schema.field(column).type
            if not type_ok(kind):
                yield np.ones(batch.num_rows, bool), column, f"the column must be {wanted}, not {kind}"
                return
        bad = np.zeros(batch.num_rows, bool)
        for problem in _value_problems(batch, self.schema):
            bad |= problem[0]
            yield problem
        # A row that is bad for another reason does not move the clock, wherever the stream is cut into batches.
        times = np.where(bad, self.newest_us, event_times(batch, self.schema))
        reached = np.maximum.accumulate(np.concatenate([[self.newest_us], times]))
        yield times < reached[:-1], self.schema.event_time, "time goes backwards"
        self.newest_us = int(reached[-1])


def _message(batch: pa.RecordBatch, row: int, column: str, reason: str) -> str:
    origin = Origin.of(batch)
    given = _given(batch, row, column) if column in batch.schema.names else ""
    return (
        f"{origin.file}, row {origin.row + row}: {column}: {reason}{given}. "
        "Mend the data, or set stream.on_bad_row=skip to leave such rows out."
    )


def _given(batch: pa.RecordBatch, row: int, column: str) -> str:
    value = batch.column(column)[row]
    # A time may lie where no Python datetime does.
    text = str(value.cast(pa.string()) if pa.types.is_timestamp(value.type) else value)
    return f"; given: {text if len(text) <= 60 else text[:57] + '...'}"


def check_features(rows: pa.RecordBatch, features: Iterable[Feature]) -> None:
    """Checks the values of rows that hold features and nothing else, such as those of a request.

    Raises:
        ConfigError: a row is bad; the message names row, column and value.
    """
    for feature in features:
        for mask, column, reason in _feature_problems(rows, feature):
            if mask.any():
                row = int(mask.argmax())
                raise ConfigError(f"row {row}: {column}: {reason}{_given(rows, row, column)}")


def event_times(batch: pa.RecordBatch, schema: FeatureSchema) -> npt.NDArray[np.int64]:
    """Event times in microseconds since 1970, UTC; 0 where missing."""
    column = batch.column(schema.event_time)
    times = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
    return np.asarray(pc.fill_null(times, 0).to_numpy(zero_copy_only=False))


def _mask(array: pa.Array) -> Mask:
    return np.asarray(pc.fill_null(array, True).to_numpy(zero_copy_only=False))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_id_list(kind: pa.DataType) -> bool:
    return _is_list(kind) and id_type_ok(kind.value_type)


def _is_number_list(kind: pa.DataType) -> bool:
    return _is_list(kind) and _is_number(kind.value_type)


def _columns(schema: FeatureSchema) -> Iterator[tuple[str, Callable[[pa.DataType], bool], str]]:
    yield schema.example_id, pa.types.is_integer, "a 64-bit integer"
    yield schema.event_time, pa.types.is_timestamp, "a timestamp"
    for column in (schema.group, schema.domain):
        if column:
            yield column, id_type_ok, "integers or strings"
    for feature in schema.features:
        if isinstance(feature, SequenceFeature):
            for field in feature.fields:
                if field.kind == "dense":
                    yield field.source_column, _is_number_list, "a list of numbers"
                else:
                    yield field.source_column, _is_id_list, "a list of integers or strings"
        elif isinstance(feature, DenseFeature):
            yield feature.source_column, _is_number, "a number"
        elif isinstance(feature, MultiValuedFeature):
            yield feature.source_column, _is_id_list, "a list of integers or strings"
        else:
            yield feature.source_column, id_type_ok, "integers or strings"
    for label in schema.labels:
        yield label.source_column, _is_number, "0 or 1"
        if label.oracle:
            yield label.oracle, pa.types.is_floating, "a probability"


def _value_problems(batch: pa.RecordBatch, schema: FeatureSchema) -> Iterator[Problem]:
    for column in (schema.example_id, schema.event_time):
        yield _mask(batch.column(column).is_null()), column, "the value is missing"
    for feature in schema.features:
        yield from _feature_problems(batch, feature)
    for label in schema.labels:
        yield from _label_problems(batch, label)


def _feature_problems(batch: pa.RecordBatch, feature: Feature) -> Iterator[Problem]:
    if isinstance(feature, SequenceFeature):
        yield from _sequence_problems(batch, feature)
        return
    values = batch.column(feature.source_column)
    if isinstance(feature, DenseFeature):
        yield ~_finite(values), feature.source_column, "the value is missing, NaN or infinite"
    elif isinstance(feature, MultiValuedFeature):
        yield from _list_problems(values, feature)
    elif feature.ids == "row":
        yield _outside(values, feature.rows), *_range_words(feature)


def _list_problems(values: pa.Array, feature: MultiValuedFeature | SequenceField) -> Iterator[Problem]:
    """What can be wrong with the ids in lists."""
    ids = values.flatten()
    yield _any_per_row(values, _mask(ids.is_null())), feature.source_column, "an id in the list is missing"
    if feature.ids == "row":
        yield _any_per_row(values, _outside(ids, feature.rows)), *_range_words(feature)


def _sequence_problems(batch: pa.RecordBatch, feature: SequenceFeature) -> Iterator[Problem]:
    first = feature.fields[0].source_column
    lengths = list_lengths(batch.column(first))
    for field in feature.fields:
        values = batch.column(field.source_column)
        unaligned = list_lengths(values) != lengths
        yield unaligned, field.source_column, f"the list is not as long as that of {first}"
        if field.kind == "dense":
            wrong = _any_per_row(values, ~_finite(values.flatten()))
            yield wrong, field.source_column, "a number in the list is missing, NaN or infinite"
        else:
            yield from _list_problems(values, field)


def _label_problems(batch: pa.RecordBatch, label: Label) -> Iterator[Problem]:
    column = batch.column(label.source_column)
    values = _numbers(column)
    yield ~((values == 0) | (values == 1)), label.source_column, "a label is 0 or 1"
    if label.oracle:
        truth = _numbers(batch.column(label.oracle))
        yield ~((truth >= 0) & (truth <= 1)), label.oracle, "a probability lies between 0 and 1"


def _numbers(column: pa.Array) -> npt.NDArray[np.float64]:
    """The values as float64, NaN where null."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _finite(column: pa.Array) -> Mask:
    """Whether each value is finite as the float32 it becomes."""
    numbers = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(np.isfinite(numbers))


def _outside(column: pa.Array, rows: int) -> Mask:
    if not pa.types.is_integer(column.type):
        return np.ones(len(column), bool)
    values = np.asarray(pc.fill_null(column, 0).to_numpy(zero_copy_only=False))
    return np.asarray((values < 0) | (values >= rows))


def _range_words(feature: CategoricalFeature | MultiValuedFeature | SequenceField) -> tuple[str, str]:
    return feature.source_column, f"a table row is an integer from 0 to {feature.rows - 1}"


def list_lengths(values: pa.Array) -> npt.NDArray[np.int64]:
    """Length of every list; 0 where it is null."""
    return np.asarray(pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)).astype(np.int64)


def _any_per_row(values: pa.Array, bad_events: Mask) -> Mask:
    """Whether any of a row's events is bad."""
    ends = np.cumsum(list_lengths(values))
    counts = np.concatenate([[0], np.cumsum(bad_events)])
    return np.asarray(np.diff(counts[np.concatenate([[0], ends])]) > 0)
