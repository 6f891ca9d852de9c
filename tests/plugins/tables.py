"""What tests of tables in a lake share: rows, how they are read, and any way to split them into files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

import exfm
from exfm.data.time_order import in_time_order
from exfm.data.validation import RowChecker

FIELDS: dict[str, Any] = {
    "features": [
        {"name": "item", "kind": "categorical", "rows": 100},
        {"name": "place", "kind": "categorical", "rows": 100},
    ],
    "labels": [{"name": "click"}],
}
MINUTE = 60_000_000


def table(times: Sequence[int | None], first_id: int = 0, **columns: Any) -> pa.Table:
    """Rows numbered from ``first_id``; the item is the number modulo 100, `place` the number modulo 3."""
    ids = np.arange(first_id, first_id + len(times))
    stamps = pa.array(times, pa.int64()).cast(pa.timestamp("us", "UTC"))
    rows: dict[str, Any] = {
        "example_id": ids,
        "event_time": stamps,
        "item": ids % 100,
        "click": (ids % 2).astype(np.int8),
    }
    rows["place"] = pa.array([f"São {number % 3}" for number in ids], pa.string())
    rows["unused"] = pa.array(["x"] * len(ids), pa.string())
    return pa.table(rows | columns)


def read(stream: exfm.DataSource, window: exfm.sources.Window | None = None) -> pa.Table:
    """The rows of a window as the core puts them in order; by default, of the whole stream. Columns are sorted."""
    batches = ordered_batches(stream, window)
    if not batches:
        return pa.table({})
    return pa.Table.from_batches([batch.select(sorted(batch.schema.names)) for batch in batches]).combine_chunks()


def ordered_batches(stream: exfm.DataSource, window: exfm.sources.Window | None = None) -> list[pa.RecordBatch]:
    """The batches of a window, or of the whole stream, that the core reads, in order and without their origin."""
    if window is None:
        time = stream.time_range()
        window = exfm.sources.Window(0, time.start_us, time.end_us)
    checker = RowChecker(stream.schema(), skip=False, newest_us=-(2**63), in_order=False)
    checked = (checker.check(batch) for batch in stream.read(window))
    return [batch.replace_schema_metadata(None) for batch in in_time_order(checked, stream.schema())]


SPLITS = st.fixed_dictionaries(
    {
        # Few times and ids: ties are common.
        "times": st.lists(st.integers(0, 9), min_size=1, max_size=30),
        "seed": st.integers(0, 999),
        "writers": st.integers(1, 4),
        "partitioned": st.booleans(),
        "group_rows": st.integers(1, 9),
        "compacted": st.booleans(),
        "batch_rows": st.integers(1, 7),
        "length": st.integers(1, 11),
    }
)
"""Rows with their order and their writers, and how a table of them is written and read."""


def rows_of_writers(whole: pa.Table, case: dict[str, Any]) -> Iterator[pa.Table]:
    """Permutes rows and gives each to a writer; a writer may have none."""
    random = np.random.default_rng(case["seed"])
    rows = whole.take(pa.array(random.permutation(whole.num_rows)))
    writer = random.integers(0, case["writers"], rows.num_rows)
    for number in range(case["writers"]):
        yield rows.filter(pa.array(writer == number))


def assert_same_windows(stream: exfm.DataSource, others: Sequence[exfm.DataSource], length: int) -> None:
    """Compares streams window by window."""
    time = stream.time_range()
    assert [other.time_range() for other in others] == [time] * len(others)
    for start in range(time.start_us, time.end_us, length):
        window = exfm.sources.Window(0, start, start + length)
        expected = read(stream, window)
        assert all(read(other, window).equals(expected) for other in others)
