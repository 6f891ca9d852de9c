"""Hashing: a scalar second formulation, every id type, and an even spread over table rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.sources.ids import hash_rows, id_type_ok, mix, to_u64
from exfm.splitmix import splitmix64
from tests.data.reference import GOLDEN, key, splitmix
from tests.data.tables import ID_TYPES, ids_in

WORDS = ["", "a", "ab", "ba", "\x00", "\x00\x00", "é", "日本語", "😀", "x" * 300, None, "a"]


def test_splitmix_as_published() -> None:
    """The first outputs of the reference generator seeded with 0, which are the mixes of multiples of its step."""
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    step = 0x9E3779B97F4A7C15
    states = np.array([step * count & (2**64 - 1) for count in range(3)], np.uint64)
    assert mix(states).tolist() == published


@given(values=st.lists(st.integers(0, 2**64 - 1)), salt=st.integers(0, 5), rows=st.integers(1, 2**40))
def test_mix_and_hash_rows_equal_the_scalar_ones(values: list[int], salt: int, rows: int) -> None:
    array = np.array(values, np.uint64)
    assert mix(array, salt).tolist() == [splitmix(value, salt) for value in values]
    assert hash_rows(array, rows).tolist() == [splitmix(value) % rows for value in values]


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_signed_integers_are_mixed_as_their_bits_and_kept(values: list[int]) -> None:
    array = np.array(values, np.int64)
    assert splitmix64(array).tolist() == [splitmix(value - GOLDEN) for value in values]
    assert array.tolist() == values


@given(data=st.data(), kind=st.sampled_from(ID_TYPES), cut=st.tuples(st.integers(0, 5), st.integers(0, 12)))
def test_keys_of_every_type_and_slice(data: st.DataObject, kind: pa.DataType, cut: tuple[int, int]) -> None:
    values = data.draw(st.lists(st.none() | ids_in(kind), max_size=12))
    array = pa.array(values, kind)
    assert to_u64(array).tolist() == [key(value) for value in values]
    assert to_u64(array.slice(*cut)).tolist() == [key(value) for value in values[cut[0] : sum(cut)]]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int16(), pa.large_string())])
def test_strings(kind: pa.DataType) -> None:
    expected = [key(word) for word in WORDS]
    assert to_u64(pa.array(WORDS, kind)).tolist() == expected
    for start in range(len(WORDS) + 1):
        assert to_u64(pa.array(WORDS, kind).slice(start, 3)).tolist() == expected[start : start + 3]
    assert len(set(expected[:10])) == 10


def test_one_value_has_one_key_whatever_its_type() -> None:
    for kind in (pa.int8(), pa.int32(), pa.uint8(), pa.uint64(), pa.int64(), pa.dictionary(pa.int8(), pa.int32())):
        assert to_u64(pa.array([7, 100], kind)).tolist() == [7, 100]
    assert to_u64(pa.array([-1], pa.int8())).tolist() == to_u64(pa.array([-1])).tolist() == [2**64 - 1]
    assert to_u64(pa.array([True, False])).tolist() == [1, 0]


def _chi_square(rows: np.ndarray[Any, np.dtype[np.int64]], count: int) -> float:
    """In standard deviations from its mean: chi-square with n degrees has mean n and variance 2n."""
    observed = np.bincount(rows, minlength=count)
    expected = len(rows) / count
    degrees = count - 1
    return float((((observed - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


@pytest.mark.parametrize("count", [2, 10, 997, 1024])
def test_ids_spread_evenly_over_rows(count: int) -> None:
    number = np.arange(200_000)
    streams = {
        "consecutive": to_u64(pa.array(number)),
        "far apart": to_u64(pa.array(number * 2**32)),
        "multiples": to_u64(pa.array(number * count)),
        "strings": to_u64(pa.array([f"user-{i}" for i in range(50_000)])),
        "other salt": mix(to_u64(pa.array(number)), salt=1),
    }
    for name, keys in streams.items():
        assert abs(_chi_square(hash_rows(keys, count), count)) < 6, name


def test_what_can_be_an_id() -> None:
    assert all(id_type_ok(kind) for kind in ID_TYPES)
    for kind in (pa.float32(), pa.null(), pa.date32(), pa.list_(pa.int8()), pa.dictionary(pa.int8(), pa.float64())):
        assert not id_type_ok(kind)
