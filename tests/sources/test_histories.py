"""Compares histories with a search through all events; an event at the row's time or later never shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.sources import Histories, list_column

pairs = st.lists(st.tuples(st.integers(-3, 3), st.integers(-5, 9)), max_size=40)


@given(events=pairs, rows=pairs, most=st.integers(1, 5))
def test_newest_against_a_search(events: list[tuple[int, int]], rows: list[tuple[int, int]], most: int) -> None:
    key_E, time_E = (np.array([pair[i] for pair in events], np.int64) for i in (0, 1))
    key_B, time_B = (np.array([pair[i] for pair in rows], np.int64) for i in (0, 1))
    histories = Histories(key_E, time_E)
    position_H, offsets = histories.newest(key_B, time_B, most)
    seen = list_column(offsets, np.arange(len(events))[histories.order][position_H]).to_pylist()
    for (key, time), history in zip(rows, seen, strict=True):
        past = [i for i, (k, t) in enumerate(events) if k == key and t < time]
        assert history == sorted(past, key=lambda i: (events[i][1], i))[-most:]


def test_keys_and_times_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 64 bits"):
        Histories(np.array([1, 2, 3]), np.array([0, 2**62, 1]))
