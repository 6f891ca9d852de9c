"""Tests reading JSON objects to Arrow: types of a schema, and the index of an object that cannot be read."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.sources import BadObjectError, parse_objects, read_objects

SCHEMA = pa.schema({"n": pa.int64(), "words": pa.list_(pa.string())})


def test_types_do_not_depend_on_the_values() -> None:
    batch = parse_objects([b'{"n": null, "more": 1}', b"{}", b'{"words": ["a"],\n "n": 3}'], SCHEMA)
    assert batch.schema.equals(SCHEMA)
    assert batch.to_pydict() == {"n": [None, None, 3], "words": [None, None, ["a"]]}


@given(
    before=st.integers(0, 9),
    after=st.integers(0, 9),
    bad=st.sampled_from([b"", b"17", b"[{}]", b'{"n": "one"}', b'{"n": 1.5}', b'{"n": 1', b"{}{}", b'{"n": 1} x']),
)
def test_the_index_of_an_object_that_cannot_be_read(before: int, after: int, bad: bytes) -> None:
    with pytest.raises(BadObjectError) as error:
        parse_objects([b'{"n": 1}'] * before + [bad] + [b"{}"] * after, SCHEMA)
    assert error.value.index == before


def test_objects_that_cannot_be_read_are_null_and_said_why() -> None:
    objects = [b'{"n": 1}', b"17", b'{"n": 2, "words": ["a"]}', b'{"n": "x"}', b'{"n": 3}']
    rows, reasons = read_objects(objects, SCHEMA)
    assert rows["n"].to_pylist() == [1, None, 2, None, 3]
    assert rows["words"].to_pylist() == [None, None, ["a"], None, None]
    assert [reason is not None for reason in reasons] == [False, True, False, True, False]
    assert reasons[1] == "it is not a JSON object"
    nothing, none = read_objects([], SCHEMA)
    assert (nothing.num_rows, none) == (0, [])
