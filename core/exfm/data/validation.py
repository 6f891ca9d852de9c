"""Checks record batches against the schema, column by column, without a loop over rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exfm.data.column_types import IdKind, Role, column_roles, is_list, is_number, list_lengths, plain_rows
from exfm.data.event_ages import bad_events, time_us
from exfm.data.id_kinds import SeenKind, check_id_kinds
from exfm.data.positions import POSITION, Positions
from exfm.data.repeats import REPEATED, WindowIds
from exfm.data.skips import Skips
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.data_source import BAD_ROW, ROW_NUMBER, Origin
from exfm.interfaces.derived_features import BucketizedFeature, CrossedFeature
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
from exfm.interfaces.vector_feature import VectorFeature
from exfm.sources.ids import id_type_ok, to_u64

Mask = npt.NDArray[np.bool_]
Problem = tuple[Mask, str, str]
"""A mask of bad rows, the column, and the reason."""

_ROW = "row"
"""Named in place of a column where a row cannot be read at all."""


@dataclass
class RowChecker:
    """Checks batches in stream order, keeps the newest event time, and counts bad rows.

    Args:
        schema: the schema that rows must follow.
        skip: whether bad rows are left out and counted, or stop the run.
        newest_us: the watermark: an earlier event time is bad, microseconds.
        in_order: whether the source yields rows in the order of time.
        ids: finds repeated example ids; None to accept them.
        id_kinds: the kind of each column of ids until now; updated.
        skips: counts the rows left out and the rows read.
        positions: if set, good rows have their positions in the column ``POSITION``.

    Attributes:
        new_kinds: the kinds of columns that were new in the batches until now.
    """

    schema: FeatureSchema
    skip: bool
    newest_us: int
    in_order: bool = True
    ids: WindowIds | None = None
    id_kinds: dict[str, IdKind] = dataclasses.field(default_factory=dict)
    skips: Skips = dataclasses.field(default_factory=Skips)
    positions: Positions | None = None
    new_kinds: dict[str, SeenKind] = dataclasses.field(default_factory=dict, init=False)

    @property
    def skipped(self) -> int:
        """Returns the number of rows left out."""
        return self.skips.total

    def check(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch's good rows, with the schema's columns in plain types and always in the same order.

        Raises:
            ConfigError: there is a bad row and ``skip`` is off, or too many are skipped: the message names file, row,
                column and value. Or a column has a type that the schema does not allow, whether or not ``skip`` is on.
        """
        if not batch.num_rows:
            return batch
        rows = plain_rows(batch, self.schema, fill=Origin.from_batch(batch).keys_only)
        self._check_types(batch, rows)
        bad = np.zeros(batch.num_rows, bool)
        for mask, column, reason in self._problems(batch, rows, bad):
            # A row is counted for its first problem only.
            new = mask & ~bad
            if not new.any():
                continue
            message = _message(batch, int(new.argmax()), column, reason)
            if not self.skip:
                raise ConfigError(f"{message}. Mend the data, or set stream.on_bad_row=skip to leave such rows out.")
            self.skips.add(column, reason, int(new.sum()), message)
            # In place, because _problems reads the mask between its problems.
            bad |= new
        self.skips.read(batch.num_rows)
        if self.positions is not None:
            rows = rows.append_column(POSITION, self.positions.number(batch))
        good = rows.filter(pa.array(~bad)) if bad.any() else rows
        return Origin.from_batch(batch).mark(good)

    def _check_types(self, batch: pa.RecordBatch, rows: pa.RecordBatch) -> None:
        """Checks column types; a wrong type is an error under ``skip`` too, because whole files would be left out."""
        for column, role in column_roles(self.schema):
            if column not in rows.schema.names:
                continue
            type_ok, expected = _TYPES[role]
            if not type_ok(rows.schema.field(column).type):
                kind = batch.schema.field(column).type
                reason = f"the column must be {expected}, not {kind}"
                raise ConfigError(f"{_message(batch, 0, column, reason)}. Mend the data, or the schema.")
        self.new_kinds |= check_id_kinds(batch, rows, self.schema, self.id_kinds)

    def _problems(self, batch: pa.RecordBatch, rows: pa.RecordBatch, bad: Mask) -> Iterator[Problem]:
        """Yields the problems of a batch; the caller marks their rows in ``bad`` before the next problem."""
        # Rows that could not be read come first, because their other values are null.
        yield from _unread(batch)
        for column, _ in column_roles(self.schema):
            if column not in rows.schema.names:
                near = suggestion(column, batch.schema.names)
                yield np.ones(batch.num_rows, bool), column, f"the column is missing.{near}"
                return
        yield from _key_problems(rows, self.schema)
        # Rows that no model sees may lack all values but their keys.
        if not Origin.from_batch(batch).keys_only:
            yield from _value_problems(rows, self.schema)
        # A row that is bad for another reason does not move the watermark, wherever the stream is cut into batches.
        times = np.where(bad, self.newest_us, event_times(rows, self.schema))
        if self.in_order:
            reached = np.maximum.accumulate(np.concatenate([[self.newest_us], times]))
            yield times < reached[:-1], self.schema.event_time, "time goes backwards"
            self.newest_us = int(reached[-1])
        else:
            # Only where the source is wrong: it has said that no such row would come.
            yield times < self.newest_us, self.schema.event_time, "time goes backwards"
            self.newest_us = max(self.newest_us, Origin.from_batch(batch).next_us or self.newest_us)
        # Last, because only rows without another problem are remembered.
        if self.ids is not None:
            ids = to_u64(rows.column(self.schema.example_id))
            yield self.ids.repeated(ids, ~bad), self.schema.example_id, REPEATED


def _unread(batch: pa.RecordBatch) -> Iterator[Problem]:
    """Yields the rows that the source could not read, by its reasons."""
    if BAD_ROW not in batch.schema.names:
        return
    reasons = batch.column(BAD_ROW)
    for reason in reasons.unique().drop_null():
        yield _mask(pc.fill_null(pc.equal(reasons, reason), False)), _ROW, reason.as_py()


def _message(batch: pa.RecordBatch, row: int, column: str, reason: str) -> str:
    """Names file, row, column, reason and value of a bad row."""
    origin = Origin.from_batch(batch)
    shown = ""
    if column in batch.schema.names:
        shown = _shown_value(batch, row, column)
    number = origin.row + row
    if ROW_NUMBER in batch.schema.names:
        number = batch.column(ROW_NUMBER)[row].as_py()
    return f"{origin.file}, row {number}: {column}: {reason}{shown}"


def _shown_value(batch: pa.RecordBatch, row: int, column: str) -> str:
    """Writes a value for the end of a message, at most 60 characters long."""
    value = batch.column(column)[row]
    # Arrow writes times, because a time may lie outside the range of Python's datetime.
    if pa.types.is_timestamp(value.type):
        value = value.cast(pa.string())
    text = str(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"; given: {text}"


def check_features(rows: pa.RecordBatch, features: Iterable[Feature], event_time: str) -> None:
    """Checks the values of rows that hold features only, such as those of a request.

    Args:
        rows: with the features' columns.
        features: the features to check.
        event_time: the column of the rows' times, which a sequence may need.

    Raises:
        ConfigError: a row is bad; the message names row, column and value.
    """
    for feature in features:
        for mask, column, reason in _feature_problems(rows, feature, event_time):
            if mask.any():
                row = int(mask.argmax())
                raise ConfigError(f"row {row}: {column}: {reason}{_shown_value(rows, row, column)}")


def event_times(batch: pa.RecordBatch, schema: FeatureSchema) -> npt.NDArray[np.int64]:
    """Returns event times in microseconds since 1970, UTC; 0 where missing."""
    return time_us(batch.column(schema.event_time))


def _mask(array: pa.Array) -> Mask:
    # A null is bad: it comes from a comparison with a missing value.
    return np.asarray(pc.fill_null(array, True).to_numpy(zero_copy_only=False))


def _is_id_list(kind: pa.DataType) -> bool:
    return is_list(kind) and id_type_ok(kind.value_type)


def _is_number_list(kind: pa.DataType) -> bool:
    return is_list(kind) and is_number(kind.value_type)


def _is_time_list(kind: pa.DataType) -> bool:
    return is_list(kind) and (is_number(kind.value_type) or pa.types.is_timestamp(kind.value_type))


_TYPES: dict[Role, tuple[Callable[[pa.DataType], bool], str]] = {
    "example_id": (pa.types.is_integer, "integers, strings, bytes or UUIDs"),
    "time": (pa.types.is_timestamp, "a timestamp"),
    "id": (id_type_ok, "integers, strings, bytes or UUIDs"),
    "id_list": (_is_id_list, "a list of integers, strings, bytes or UUIDs"),
    "number": (is_number, "a number"),
    "number_list": (_is_number_list, "a list of numbers"),
    "vector": (_is_number_list, "a list of numbers"),
    "time_list": (_is_time_list, "a list of timestamps or of numbers"),
    "label": (is_number, "0 or 1, or null"),
    "oracle": (pa.types.is_floating, "a probability"),
    "weight": (is_number, "a number"),
}
"""By role, a test of a column's plain type, and the allowed types in words."""


def _key_problems(batch: pa.RecordBatch, schema: FeatureSchema) -> Iterator[Problem]:
    for column in (schema.example_id, schema.event_time):
        yield _mask(batch.column(column).is_null()), column, "the value is missing"


def _value_problems(batch: pa.RecordBatch, schema: FeatureSchema) -> Iterator[Problem]:
    for feature in schema.features:
        yield from _feature_problems(batch, feature, schema.event_time)
    if schema.weight:
        column = batch.column(schema.weight)
        yield ~(_finite(column) & (_numbers(column) >= 0)), schema.weight, "a weight is a finite number, 0 or more"
    for label in schema.labels:
        yield from _label_problems(batch, label)


def _feature_problems(batch: pa.RecordBatch, feature: Feature, event_time: str) -> Iterator[Problem]:
    # Any number has a bucket, and any ids have a cross.
    if isinstance(feature, BucketizedFeature | CrossedFeature):
        return
    if isinstance(feature, SequenceFeature):
        yield from _sequence_problems(batch, feature, event_time)
        return
    values = batch.column(feature.source_column)
    if isinstance(feature, VectorFeature):
        yield from _vector_problems(values, feature)
        return
    if isinstance(feature, DenseFeature):
        yield _not_allowed(values, feature.missing), feature.source_column, f"the value is {_unusable(feature.missing)}"
    elif isinstance(feature, MultiValuedFeature):
        yield from _list_problems(values, feature)
        if feature.weights is not None:
            yield from _weight_problems(batch.column(feature.weights), feature.weights, values, feature.source_column)
    elif feature.ids == "row":
        yield _outside(values, feature.rows), *_range_words(feature)


def _list_problems(values: pa.Array, feature: MultiValuedFeature | SequenceField) -> Iterator[Problem]:
    """Yields rows with a missing or invalid id in a list."""
    ids = values.flatten()
    yield _any_per_row(values, _mask(ids.is_null())), feature.source_column, "an id in the list is missing"
    if feature.ids == "row":
        yield _any_per_row(values, _outside(ids, feature.rows)), *_range_words(feature)


def _weight_problems(weights: pa.Array, column: str, ids: pa.Array, id_column: str) -> Iterator[Problem]:
    """Yields rows whose weights are not aligned with their ids, or hold an invalid weight."""
    yield list_lengths(weights) != list_lengths(ids), column, f"the list is not as long as that of {id_column}"
    values = weights.flatten()
    wrong = ~(_finite(values) & (_numbers(values) >= 0))
    yield _any_per_row(weights, wrong), column, "a weight is a finite number, 0 or more"


def _vector_problems(values: pa.Array, feature: VectorFeature) -> Iterator[Problem]:
    """Yields rows whose vector has another width or holds no finite number; a null is a missing vector."""
    lengths = list_lengths(values)
    wrong = (lengths != feature.width) & values.is_valid().to_numpy(zero_copy_only=False)
    # Each length that occurs is a reason, so that a message names it.
    for length in np.unique(lengths[wrong]):
        reason = f"the vector has {length} numbers, and width is {feature.width}"
        yield wrong & (lengths == length), feature.source_column, reason
    wrong = _any_per_row(values, ~_finite(values.flatten()))
    yield wrong, feature.source_column, "a number in the vector is missing, NaN or infinite"


def _sequence_problems(batch: pa.RecordBatch, feature: SequenceFeature, event_time: str) -> Iterator[Problem]:
    """Yields rows whose lists differ in length, or hold an invalid number, id or time."""
    # All fields are compared with the first, because decoding cuts their events by its lengths.
    first = feature.fields[0].source_column
    lengths = list_lengths(batch.column(first))
    for field in feature.fields:
        values = batch.column(field.source_column)
        unaligned = list_lengths(values) != lengths
        yield unaligned, field.source_column, f"the list is not as long as that of {first}"
        if field.kind == "dense":
            wrong = _any_per_row(values, _not_allowed(values.flatten(), field.missing))
            yield wrong, field.source_column, f"a number in the list is {_unusable(field.missing)}"
        else:
            yield from _list_problems(values, field)
    if feature.times is not None:
        column = feature.times.column
        values = batch.column(column)
        yield list_lengths(values) != lengths, column, f"the list is not as long as that of {first}"
        bad_E, reason = bad_events(batch, feature.times, event_time)
        yield _any_per_row(values, bad_E), column, reason


def _label_problems(batch: pa.RecordBatch, label: Label) -> Iterator[Problem]:
    column = batch.column(label.source_column)
    values = _numbers(column)
    unknown = np.isnan(values)  # NaN is a null that has gone through pandas
    if label.kind == "regression":
        reason = f"a {label.kind} label is a finite number, or null where it is not known"
        yield ~(unknown | _finite(column)), label.source_column, reason
        if label.minimum is not None:
            reason = f"the label has minimum: {label.minimum:g}"
            yield values < label.minimum, label.source_column, reason
        if label.oracle:
            yield ~_finite(batch.column(label.oracle)), label.oracle, "an expected value is a finite number"
        return
    largest, reason = 1, "a label is 0 or 1, or null where it is not known"
    if label.kind == "multiclass":
        largest = label.width - 1
        reason = f"a multiclass label is a whole number from 0 to {largest}, or null where it is not known"
    wrong = ~(unknown | ((values == np.floor(values)) & (values >= 0) & (values <= largest)))
    yield wrong, label.source_column, reason
    if label.oracle:
        truth = _numbers(batch.column(label.oracle))
        yield ~((truth >= 0) & (truth <= 1)), label.oracle, "a probability lies between 0 and 1"


def _numbers(column: pa.Array) -> npt.NDArray[np.float64]:
    """Returns the values as float64, NaN where null."""
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))


def _finite(column: pa.Array) -> Mask:
    """Returns a mask of finite values."""
    # In float32, because decode casts to it and a large double overflows.
    numbers = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(np.isfinite(numbers))


def _not_allowed(column: pa.Array, missing: str | None) -> Mask:
    """Returns a mask of the values that are no finite numbers; missing values are allowed where they are filled."""
    if missing is None:
        return ~_finite(column)
    numbers = column.cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    return np.asarray(np.isinf(numbers))


def _unusable(missing: str | None) -> str:
    return "infinite" if missing else "missing, NaN or infinite"


def _outside(column: pa.Array, rows: int) -> Mask:
    """Returns a mask of the ids that are no row of a table; a null is not outside."""
    if not pa.types.is_integer(column.type):
        return np.asarray(column.is_valid().to_numpy(zero_copy_only=False))
    values = np.asarray(pc.fill_null(column, 0).to_numpy(zero_copy_only=False))
    return np.asarray((values < 0) | (values >= rows))


def _range_words(feature: CategoricalFeature | MultiValuedFeature | SequenceField) -> tuple[str, str]:
    return feature.source_column, f"a table row is an integer from 0 to {feature.rows - 1}"


def _any_per_row(values: pa.Array, bad_events: Mask) -> Mask:
    """Returns a mask of the rows with a bad event."""
    # Bad events per row by differences of a running count, without a loop over rows.
    ends = np.cumsum(list_lengths(values))
    counts = np.concatenate([[0], np.cumsum(bad_events)])
    return np.asarray(np.diff(counts[np.concatenate([[0], ends])]) > 0)
