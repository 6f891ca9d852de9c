"""Converts columns to few types, because files may store the same column in several."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

_LISTS = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
_STRINGS = (types.is_string, types.is_large_string, types.is_string_view)
_BYTES = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
_KEYS = (pa.int64(), pa.string(), pa.bool_(), pa.binary(), pa.null())


def plain_type(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type that a column is converted to; None if a column of this type cannot be joined."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if any(is_list(kind) for is_list in _LISTS):
        inner = plain_type(kind.value_type)
        return None if inner is None else pa.list_(inner)
    if types.is_integer(kind):
        return pa.int64()
    if types.is_floating(kind) or types.is_decimal(kind):
        return pa.float64()
    if any(is_string(kind) for is_string in _STRINGS):
        return pa.string()
    if any(is_bytes(kind) for is_bytes in _BYTES):
        return pa.binary()
    if types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    return kind if types.is_boolean(kind) or types.is_null(kind) else None


def to_plain(column: pa.ChunkedArray | pa.Array, location: str) -> pa.ChunkedArray | pa.Array:
    """Converts a column to its plain type.

    Args:
        location: names the file and the column, for the message.

    Raises:
        ValueError: a column of this type cannot be joined.
    """
    plain = plain_type(column.type)
    if plain is None:
        raise ValueError(f"{location} is {column.type}; allowed: numbers, text, bytes, booleans, times, lists of these")
    if isinstance(column.type, pa.BaseExtensionType):
        column = column.cast(column.type.storage_type)
    if column.type.equals(plain):
        return column
    if types.is_uint64(column.type):
        # Ids above 2^63 wrap around, as where the core reads them: they stay different.
        return pc.cast(column, plain, safe=False)
    return pc.cast(column, plain, safe=not types.is_timestamp(plain))


def check_key(column: pa.ChunkedArray | pa.Array, location: str) -> None:
    """Raises ValueError if a plain column cannot be joined on."""
    if column.type not in _KEYS:
        raise ValueError(f"{location} is {column.type}; a column to join on has whole numbers, text, bytes or booleans")
