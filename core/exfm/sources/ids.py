"""Hashes integers and strings to example ids and table rows, the same on every machine, without a loop over rows.

Integers go through the finalizer of splitmix64 (Steele et al. 2014). Strings are first reduced to 64 bits by a
polynomial over their UTF-8 bytes modulo 2**64, then hashed as integers; bytes are too, so that a string and its UTF-8
bytes are the same id. A UUID is its 16 bytes, and its text is another id.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exfm.splitmix import splitmix64

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

# Independent of the hashes of table rows, buckets, groups and remembered ids.
_EXAMPLE_SALT = 4
# The increment of splitmix64, 2**64 divided by the golden ratio. Odd, so that its powers keep all bits of a term.
_BASE = 0x9E3779B97F4A7C15 | 1


def mix(values: U64, salt: int = 0) -> U64:
    """Spreads 64-bit values over 64 bits; different salts give independent hashes."""
    # In Python's integers first, because numpy warns where a scalar overflows.
    return splitmix64(values + np.uint64((salt * _BASE + _BASE) & 0xFFFFFFFFFFFFFFFF))


def id_type_ok(kind: pa.DataType) -> bool:
    """Tells whether a column of this type can hold ids."""
    return bool(
        pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or holds_bytes(kind)
        or (pa.types.is_dictionary(kind) and id_type_ok(kind.value_type))
    )


def to_u64(values: pa.Array) -> U64:
    """Returns a 64-bit key per value: the integer itself, or the polynomial of a string's UTF-8 bytes, or of bytes.

    Nulls become 0: mask them.
    """
    kind = values.type
    if pa.types.is_dictionary(kind):
        # Each distinct value is hashed once.
        keys = np.zeros(len(values), np.uint64)
        present = values.indices.is_valid().to_numpy(zero_copy_only=False)
        keys[present] = to_u64(values.dictionary)[values.indices.drop_null().to_numpy()]
        return keys
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return _string_keys(pc.fill_null(values.cast(pa.large_string()), ""))
    if holds_bytes(kind):
        return _bytes_keys(values)
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    # Arrow turns integers with nulls into floats: large ids would be rounded.
    if values.null_count:
        values = pc.fill_null(values, 0)
    return np.asarray(values.to_numpy(zero_copy_only=False)).astype(np.int64, copy=False).view(np.uint64)


def example_id_ok(kind: pa.DataType) -> bool:
    """Tells whether a column of this type can hold example ids: integers, strings, bytes or UUIDs."""
    if pa.types.is_dictionary(kind):
        return example_id_ok(kind.value_type)
    return bool(
        pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind) or holds_bytes(kind)
    )


def example_ids(values: pa.Array) -> pa.Array:
    """Returns ids of examples as int64: integers as they are, strings, bytes and UUIDs hashed; a null stays null.

    Predictions and supervision of a stream whose ids are no integers name examples by these.
    """
    missing = values.is_null().to_numpy(zero_copy_only=False)
    keys = to_u64(values)
    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if not pa.types.is_integer(kind):
        # Spread over all bits, because polynomials of similar ids differ in few of them.
        keys = mix(keys, _EXAMPLE_SALT)
    return pa.array(keys.view(np.int64), mask=missing)


def place_ids(name: str, first_row: int, rows: int) -> pa.Array:
    """Returns ids of examples that have none in the log, from their place: the name of a file, and rows in it."""
    key = mix(to_u64(pa.array([name])))[0]
    with np.errstate(over="ignore"):  # modulo 2**64
        places = key + np.arange(first_row, first_row + rows, dtype=np.uint64)
    return pa.array(mix(places, _EXAMPLE_SALT).view(np.int64))


def _bytes_keys(values: pa.Array) -> U64:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    return _string_keys(pc.fill_null(values.cast(pa.large_binary()), b""))


def holds_bytes(kind: pa.DataType) -> bool:
    """Tells whether values of this type are bytes, of equal or varying length, or UUIDs, which are 16 bytes."""
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    types = pa.types
    return bool(
        types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
        or types.is_binary_view(kind)
    )


def hash_rows(keys: U64, rows: int) -> I64:
    """Returns a table row in [0, rows) per key."""
    return (mix(keys) % np.uint64(rows)).astype(np.int64)


def hash_63(keys: U64) -> I64:
    """Returns 63 bits per key, not negative: the managed ids that a model assigns rows to."""
    return (mix(keys) >> np.uint64(1)).astype(np.int64)


def _string_keys(values: Any) -> U64:
    """Returns the polynomial of every string's bytes, modulo 2**64."""
    # Large binary, because its offsets are int64 and the loop-free sums below index with them.
    data = values.cast(pa.large_binary())
    offsets = np.frombuffer(data.buffers()[1], np.int64)[data.offset : data.offset + len(data) + 1]
    if len(data) == 0:
        return np.zeros(0, np.uint64)
    start, end = int(offsets[0]), int(offsets[-1])
    buffer = data.buffers()[2]
    octets = np.frombuffer(buffer, np.uint8)[start:end] if buffer is not None else np.zeros(0, np.uint8)
    lengths = np.diff(offsets)
    position = np.arange(end - start) - np.repeat(offsets[:-1] - start, lengths)
    # uint64 arithmetic wraps around, which is the modulus.
    powers = np.cumprod(np.full(int(lengths.max(initial=0)) + 1, _BASE, np.uint64), dtype=np.uint64)
    # Plus 1, because a zero byte must count: "a" and "a\0" are different ids.
    terms = (octets.astype(np.uint64) + np.uint64(1)) * powers[position]
    # A string's sum is a difference of running sums: exact in modular arithmetic, whatever came before.
    total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return np.asarray(total[offsets[1:] - start] - total[offsets[:-1] - start], dtype=np.uint64)
