"""Rows are those that Arrow takes, whatever the lengths of their lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from exfm.data.take_rows import take_rows

NUMBERS = st.one_of(st.none(), st.integers(-9, 9))
LISTS = st.one_of(st.none(), st.lists(NUMBERS, max_size=3))


@settings(max_examples=25)
@given(data=st.data(), rows=st.integers(1, 9), start=st.integers(0, 4))
def test_rows_are_those_that_arrow_takes(data: st.DataObject, rows: int, start: int) -> None:
    width = data.draw(st.integers(0, 3))
    vectors = st.lists(NUMBERS, min_size=width, max_size=width)
    size = start + rows
    columns = {
        "vector": pa.array(data.draw(st.lists(vectors, min_size=size, max_size=size)), pa.list_(pa.float32())),
        "ids": pa.array(data.draw(st.lists(LISTS, min_size=size, max_size=size)), pa.list_(pa.int64())),
        "text": pa.array([["a"], ["b"]] * size, pa.list_(pa.string()))[:size],
        "id": pa.array(range(size)),
    }
    batch = pa.RecordBatch.from_pydict(columns).slice(start)
    index = np.array(data.draw(st.lists(st.integers(0, rows - 1), max_size=12)), np.int64)
    taken = take_rows(batch, index)
    taken.validate(full=True)
    assert taken.schema.equals(batch.schema)
    assert taken.to_pylist() == batch.take(pa.array(index)).to_pylist()
