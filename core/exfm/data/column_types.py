"""Casts columns to plain types: 64-bit integers, strings, bytes, double-precision numbers, and lists of these.

Values are unchanged. Writers choose different types for equal values; in plain types, batches of different files can be
concatenated, and several processes cut the stream at the same rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from exfm.interfaces.derived_features import BucketizedFeature, CrossedFeature
from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    FeatureSchema,
    MultiValuedFeature,
    SequenceFeature,
)
from exfm.interfaces.vector_feature import VectorFeature
from exfm.sources.ids import example_id_ok, example_ids, holds_bytes

Role = Literal[
    "example_id", "time", "id", "id_list", "number", "number_list", "time_list", "vector", "label", "oracle", "weight"
]  # fmt: skip
"""The use of a column by the schema."""

_ID_ROLES = ("example_id", "id", "id_list")
_TIME = pa.timestamp("us")

IdKind = Literal["integers", "strings", "bytes"]
"""Bytes are those of equal length, such as UUIDs; others count as strings, whose UTF-8 bytes have the same keys."""


def column_roles(schema: FeatureSchema) -> Iterator[tuple[str, Role]]:
    """Yields the role of every column that the schema reads; a column with two roles comes twice."""
    yield schema.example_id, "example_id"
    yield schema.event_time, "time"
    for column in (schema.group, schema.domain):
        if column:
            yield column, "id"
    for feature in schema.features:
        if isinstance(feature, SequenceFeature):
            for field in feature.fields:
                if field.kind == "dense":
                    yield field.source_column, "number_list"
                else:
                    yield field.source_column, "id_list"
            if feature.times is not None:
                if feature.times.holds == "age":
                    yield feature.times.column, "number_list"
                else:
                    yield feature.times.column, "time_list"
        elif isinstance(feature, DenseFeature | BucketizedFeature):
            yield feature.source_column, "number"
        elif isinstance(feature, CrossedFeature):
            for read in feature.parts:
                yield read.column, "id" if read.boundaries is None else "number"
        elif isinstance(feature, VectorFeature):
            yield feature.source_column, "vector"
        elif isinstance(feature, MultiValuedFeature):
            yield feature.source_column, "id_list"
            if feature.weights is not None:
                yield feature.weights, "number_list"
        else:
            yield feature.source_column, "id"
    if schema.weight:
        yield schema.weight, "weight"
    for label in schema.labels:
        # Labels of other kinds are numbers, and so is the truth of them.
        binary = label.kind == "binary"
        yield label.source_column, "label" if binary else "number"
        if label.oracle:
            yield label.oracle, "oracle" if binary else "number"


def id_tables(schema: FeatureSchema) -> Iterator[tuple[str, str]]:
    """Yields every column of ids with its embedding table; it is empty where the ids are no rows of a table alone."""
    for column in (schema.example_id, schema.group, schema.domain):
        if column:
            yield column, ""
    for feature in schema.features:
        if isinstance(feature, SequenceFeature):
            for field in feature.fields:
                if field.kind == "categorical":
                    yield field.source_column, feature.table_name(field)
        elif isinstance(feature, CrossedFeature):
            yield from ((read.column, "") for read in feature.parts if read.boundaries is None)
        elif isinstance(feature, CategoricalFeature | MultiValuedFeature):
            yield feature.source_column, feature.table_name


def plain_rows(batch: pa.RecordBatch, schema: FeatureSchema, fill: bool = False) -> pa.RecordBatch:
    """Selects the schema's columns that a batch has, always in the same order, and casts them to plain types.

    Args:
        fill: add the columns that the batch lacks, without any value.
    """
    roles: dict[str, Role] = {}
    for column, role in column_roles(schema):
        # Ids stay ids where another feature reads the column as numbers, because a cast to double loses large ids.
        if role in _ID_ROLES or column not in roles:
            roles[column] = role
    present = set(batch.schema.names)
    names = [column for column in roles if fill or column in present]
    columns: list[pa.Array] = []
    for name in names:
        column = batch.column(name) if name in present else pa.nulls(batch.num_rows)
        columns.append(plain(column, roles[name]))
    # New fields are all nullable: files that differ in nullability only get equal schemas.
    return pa.RecordBatch.from_arrays(columns, names)


def plain(column: pa.Array, role: Role) -> pa.Array:
    """Casts a column to the type of its role, or returns it unchanged where the cast would lose values.

    A dictionary of strings or integers stays a dictionary, because it is faster to hash.
    """
    if role == "time" or (role == "oracle" and is_number(column.type)):
        return column
    if role in ("id_list", "number_list", "time_list", "vector"):
        return _plain_list(column, role)
    if role in ("number", "label", "oracle", "weight"):
        return _plain_numbers(column, pa.float64())
    if role == "example_id":
        column = _plain_ids(column)
        return example_ids(column) if example_id_ok(column.type) else column
    return _plain_ids(column)


def unify(batches: Sequence[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """Casts batches in plain types to a common type for each column.

    Plain types may still differ in dictionaries and their values, in units and zones of time, and in columns without
    any value.
    """
    names = batches[0].schema.names
    columns = []
    for name in names:
        arrays = [batch.column(name) for batch in batches]
        columns.append(_unify_arrays(arrays))
    return [pa.RecordBatch.from_arrays(list(arrays), names) for arrays in zip(*columns, strict=True)]


def _unify_arrays(arrays: list[pa.Array]) -> list[pa.Array]:
    """Casts arrays of a column to a common type."""
    if all(array.type == arrays[0].type for array in arrays):
        return arrays
    if types.is_timestamp(arrays[0].type):
        return list(map(_plain_times, arrays))
    arrays = list(map(without_dictionary, arrays))
    # A writer of bytes may have a batch of UTF-8 only, which is strings here.
    if any(_value_type(array) == pa.binary() for array in arrays):
        arrays = list(map(_as_bytes, arrays))
    # The first array with a value decides, because an array of nulls has an arbitrary type.
    kind = next((array.type for array in arrays if id_kind(array) is not None), arrays[0].type)
    return [array if array.type == kind else _empty_as(array, kind) for array in arrays]


def without_dictionary(column: pa.Array) -> pa.Array:
    """Replaces dictionary indices by their values, in lists too."""
    kind = column.type
    if types.is_dictionary(kind):
        return _plain_ids(column.cast(kind.value_type))
    if types.is_list(kind) and types.is_dictionary(kind.value_type):
        return replace_values(column, without_dictionary(column.flatten()))
    return column


def _value_type(column: pa.Array) -> pa.DataType:
    return column.type.value_type if types.is_list(column.type) else column.type


def _as_bytes(column: pa.Array) -> pa.Array:
    """Casts strings to bytes, in lists too; returns other values unchanged."""
    if _value_type(column) != pa.string():
        return column
    if types.is_list(column.type):
        return replace_values(column, column.flatten().cast(pa.binary()))
    return column.cast(pa.binary())


def _empty_as(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Casts a column without any value to another type, which a cast by Arrow does not always allow."""
    if is_list(kind):
        return replace_values(column, pa.nulls(len(column.flatten()), kind.value_type))
    assert column.null_count == len(column), f"{column.type} beside {kind}"
    return pa.nulls(len(column), kind)


def id_kind(column: pa.Array) -> IdKind | None:
    """Returns the kind of a column's ids, in plain types or as stored, which may be in lists; None without a value."""
    values = column
    if is_list(column.type):
        values = column.flatten()
    if values.null_count == len(values):
        return None
    kind = values.type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_fixed_size_binary(kind) or isinstance(kind, pa.BaseExtensionType):
        return "bytes"
    return "integers" if types.is_integer(kind) else "strings"


def is_list(kind: pa.DataType) -> bool:
    """Tells whether a type is a list type of any layout."""
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind) or _is_view(kind))


def is_usual(kind: pa.DataType) -> bool:
    """Tells whether a type is common for ids, numbers, or lists of them."""
    if is_list(kind) and not _is_view(kind):
        return is_usual(kind.value_type)
    if types.is_dictionary(kind):
        return is_usual(kind.value_type)
    return is_number(kind) or bool(types.is_string(kind) or types.is_large_string(kind))


def list_lengths(values: pa.Array) -> np.ndarray:
    """Returns the length of every list (int64); 0 where it is null."""
    # int64, because fixed-size and large lists give lengths of other widths.
    return np.asarray(pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)).astype(np.int64)


def _is_view(kind: pa.DataType) -> bool:
    return bool(types.is_list_view(kind) or types.is_large_list_view(kind))


def _plain_list(column: pa.Array, role: Role) -> pa.Array:
    """Casts lists of ids or numbers to the plain list type."""
    kind, has_ids = column.type, role == "id_list"
    if types.is_null(kind):
        return column.cast(pa.list_(pa.int64() if has_ids else _number_type(role)))
    if not is_list(kind):
        return column
    values = column.flatten()
    plain_values = _plain_ids(values) if has_ids else _plain_numbers(_plain_times(values), _number_type(role))
    if kind == pa.list_(plain_values.type):
        return column
    return replace_values(column, plain_values)


def replace_values(column: pa.Array, values: pa.Array) -> pa.Array:
    """Makes lists as long as those of a column, with other values."""
    # Offsets are computed, because Arrow's cast of list views gives invalid arrays.
    offsets = pa.array(np.concatenate([[0], np.cumsum(list_lengths(column))]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, mask=column.is_null())


def _plain_times(column: pa.Array) -> pa.Array:
    """Casts timestamps to microseconds of UTC; returns other values unchanged."""
    kind = column.type
    if kind == _TIME or not types.is_timestamp(kind):
        return column
    # The view drops the zone without moving the clock: Arrow stores UTC whatever the zone.
    return column.cast(pa.timestamp("us", kind.tz), safe=False).view(_TIME)


def _number_type(role: Role) -> pa.DataType:
    # Vectors are wide, and a model reads them in single precision: in double they would take twice the memory.
    return pa.float32() if role == "vector" else pa.float64()


def _plain_numbers(column: pa.Array, number_type: pa.DataType) -> pa.Array:
    """Casts numbers to a floating-point type."""
    kind = column.type
    if kind == number_type or not (is_number(kind) or types.is_decimal(kind) or types.is_null(kind)):
        return column
    # Unsafe: a safe cast refuses integers above 2**53, and they round as any number does.
    return column.cast(number_type, safe=False)


def _plain_ids(column: pa.Array) -> pa.Array:
    """Casts ids to 64-bit integers, strings or bytes; returns other values unchanged."""
    kind = column.type
    if kind in (pa.int64(), pa.string()):
        return column
    if types.is_dictionary(kind):
        return _plain_dictionary(column)
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind):
        # Unsafe: the highest bit of an unsigned integer becomes the sign, and the 64 bits stay.
        return column.cast(pa.int64(), safe=False)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return column.cast(pa.string())
    if types.is_decimal(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            # A fraction: the check of types names the column.
            return column
    return _plain_bytes(column) if holds_bytes(kind) else column


def _plain_bytes(column: pa.Array) -> pa.Array:
    """Casts bytes to strings where they are UTF-8 of any length, and else to bytes; their keys are the same."""
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    octets = column.cast(pa.binary())
    if types.is_fixed_size_binary(column.type):
        # UUIDs and digests, few of which are UTF-8 by chance.
        return octets
    try:
        return octets.cast(pa.string())
    except pa.ArrowInvalid:
        return octets


def _plain_dictionary(column: pa.Array) -> pa.Array:
    """Casts the values of a dictionary, and keeps its indices."""
    values = column.dictionary
    # Strings and integers of any width are hashed as they are, and fewer casts are faster.
    if not holds_bytes(values.type) and not types.is_string_view(values.type):
        return column
    return pa.DictionaryArray.from_arrays(column.indices, _plain_ids(values))


def is_number(kind: pa.DataType) -> bool:
    """Tells whether a type is numeric; booleans are."""
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind))
