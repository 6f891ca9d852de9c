"""One type per column, whatever a writer has chosen: integers of 64 bits, strings, numbers in double precision, lists.

Rows keep their values. So batches of different files can follow each other, and be cut alike by several processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from exfm.interfaces.schema import DenseFeature, FeatureSchema, MultiValuedFeature, SequenceFeature

Role = Literal["example_id", "time", "id", "id_list", "number", "number_list", "time_list", "label", "oracle"]
"""What a column is to the schema."""

_ID_ROLES = ("example_id", "id", "id_list")
_TIME = pa.timestamp("us")

IdKind = Literal["integers", "strings"]


def column_roles(schema: FeatureSchema) -> Iterator[tuple[str, Role]]:
    """The role of every column that the schema reads; a column of two roles comes twice."""
    yield schema.example_id, "example_id"
    yield schema.event_time, "time"
    for column in (schema.group, schema.domain):
        if column:
            yield column, "id"
    for feature in schema.features:
        if isinstance(feature, SequenceFeature):
            for field in feature.fields:
                yield field.source_column, "number_list" if field.kind == "dense" else "id_list"
            if feature.times is not None:
                yield feature.times.column, "number_list" if feature.times.holds == "age" else "time_list"
        elif isinstance(feature, DenseFeature):
            yield feature.source_column, "number"
        else:
            yield feature.source_column, "id_list" if isinstance(feature, MultiValuedFeature) else "id"
    for label in schema.labels:
        yield label.source_column, "label"
        if label.oracle:
            yield label.oracle, "oracle"


def id_tables(schema: FeatureSchema) -> Iterator[tuple[str, str]]:
    """Every column of ids, and the embedding table that it is looked up in; nothing for a group or a domain."""
    for column in (schema.group, schema.domain):
        if column:
            yield column, ""
    for feature in schema.features:
        if isinstance(feature, SequenceFeature):
            for field in feature.fields:
                if field.kind == "categorical":
                    yield field.source_column, feature.table_name(field)
        elif not isinstance(feature, DenseFeature):
            yield feature.source_column, feature.table_name


def plain_rows(batch: pa.RecordBatch, schema: FeatureSchema) -> pa.RecordBatch:
    """A batch's columns of the schema, those that it has, in an order that is always the same and in plain types."""
    roles: dict[str, Role] = {}
    for column, role in column_roles(schema):
        if role in _ID_ROLES or column not in roles:  # ids stay ids where they are read as numbers too
            roles[column] = role
    names = [column for column in roles if column in batch.schema.names]
    columns = [plain(batch.column(name), roles[name]) for name in names]
    # Whether a column may be null is no difference: fields are built anew.
    return pa.RecordBatch.from_arrays(columns, names)


def plain(column: pa.Array, role: Role) -> pa.Array:
    """The column in the type of its role; as it is where it cannot be that, such as decimals with a fraction for ids.

    A dictionary of strings or integers stays one, since that is faster to hash.
    """
    if role == "time" or (role == "oracle" and is_number(column.type)):
        return column
    if role in ("id_list", "number_list", "time_list"):
        return _plain_list(column, role)
    return _plain_numbers(column) if role in ("number", "label", "oracle") else _plain_ids(column)


def alike(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Batches in plain types, with one type for each column.

    What differs still is dictionaries and what they hold, units and zones of time, and columns without any value.
    """
    columns = [_alike([batch.column(name) for batch in batches]) for name in batches[0].schema.names]
    names = batches[0].schema.names
    return [pa.RecordBatch.from_arrays(list(arrays), names) for arrays in zip(*columns, strict=True)]


def _alike(arrays: list[pa.Array]) -> list[pa.Array]:
    if all(array.type == arrays[0].type for array in arrays):
        return arrays
    if types.is_timestamp(arrays[0].type):
        return [array.cast(pa.timestamp("us", array.type.tz), safe=False).view(pa.timestamp("us")) for array in arrays]
    arrays = [_without_dictionary(array) for array in arrays]
    kind = next((array.type for array in arrays if id_kind(array) is not None), arrays[0].type)
    return [array if array.type == kind else _empty_as(array, kind) for array in arrays]


def _without_dictionary(column: pa.Array) -> pa.Array:
    kind = column.type
    if types.is_dictionary(kind):
        return _plain_ids(column.cast(kind.value_type))
    if types.is_list(kind) and types.is_dictionary(kind.value_type):
        return _list_of(column, _without_dictionary(column.flatten()))
    return column


def _empty_as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column that holds no value, in another type: ids keep their type once they have one."""
    if is_list(kind):
        return _list_of(column, pa.nulls(len(column.flatten()), kind.value_type))
    assert column.null_count == len(column), f"{column.type} beside {kind}"
    return pa.nulls(len(column), kind)


def id_kind(column: pa.Array) -> IdKind | None:
    """What a column of ids, or of lists of them, holds; nothing where it holds no value."""
    values = column.flatten() if is_list(column.type) else column
    if values.null_count == len(values):
        return None
    kind = values.type.value_type if types.is_dictionary(values.type) else values.type
    return "strings" if types.is_string(kind) or types.is_large_string(kind) else "integers"


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of lists."""
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or _is_view(kind))


def is_usual(kind: pa.DataType) -> bool:
    """Whether a type is one that ids and numbers, or lists of them, commonly have."""
    if is_list(kind) and not _is_view(kind):
        return is_usual(kind.value_type)
    if types.is_dictionary(kind):
        return is_usual(kind.value_type)
    return is_number(kind) or bool(types.is_string(kind) or types.is_large_string(kind))


def list_lengths(values: pa.Array) -> np.ndarray:
    """Length of every list (int64); 0 where it is null."""
    return np.asarray(pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)).astype(np.int64)


def _is_view(kind: pa.DataType) -> bool:
    return bool(types.is_list_view(kind) or types.is_large_list_view(kind))


def _plain_list(column: pa.Array, role: Role) -> pa.Array:
    kind = column.type
    if types.is_null(kind):
        return column.cast(pa.list_(pa.int64() if role == "id_list" else pa.float64()))
    if not is_list(kind):
        return column
    values = column.flatten()
    plain_values = _plain_ids(values) if role == "id_list" else _plain_numbers(_plain_times(values))
    wanted = pa.list_(plain_values.type)
    return column if kind == wanted else _list_of(column, plain_values)


def _list_of(column: pa.Array, values: pa.Array) -> pa.Array:
    """Lists as long as those of a column, with other values. Arrow's own cast of list views gives invalid arrays."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(list_lengths(column))]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=column.is_null())


def _plain_times(column: pa.Array) -> pa.Array:
    """Timestamps in microseconds of UTC; anything else as it is."""
    kind = column.type
    if kind == _TIME or not types.is_timestamp(kind):
        return column
    return column.cast(pa.timestamp("us", kind.tz), safe=False).view(_TIME)


def _plain_numbers(column: pa.Array) -> pa.Array:
    kind = column.type
    if kind == pa.float64() or not (is_number(kind) or types.is_decimal(kind) or types.is_null(kind)):
        return column
    return column.cast(pa.float64(), safe=False)


def _plain_ids(column: pa.Array) -> pa.Array:
    kind = column.type
    if kind in (pa.int64(), pa.string()) or types.is_dictionary(kind):
        return column
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind):
        return column.cast(pa.int64(), safe=False)  # the highest bit of an unsigned integer becomes the sign
    if types.is_large_string(kind) or types.is_string_view(kind):
        return column.cast(pa.string())
    try:
        if types.is_decimal(kind):
            return column.cast(pa.int64())
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
            return column.cast(pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:  # a fraction, or octets that are no text
        return column
    return column


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is one of numbers, booleans among them."""
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind))
