"""Tests repeated ids: a window and a short stream report all, a long stream reports some, and never a new id."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.data import repeats
from exfm.data.repeats import SeenIds, WindowIds


@given(
    batches=st.lists(st.lists(st.tuples(st.integers(0, 30), st.booleans()), max_size=12), max_size=6),
    before=st.lists(st.integers(0, 30), max_size=5),
    longest=st.sampled_from([4, 1 << 22]),
)
def test_repeated_ids_against_a_reference(
    batches: list[list[tuple[int, bool]]], before: list[int], longest: int
) -> None:
    """The first usable row of an id is good, every later row is not; rows that are not usable say nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "_LONGEST_RUN", longest)
        seen = SeenIds()
        seen.add(np.array(before, np.uint64))
        window, remembered = WindowIds(seen), set(before)
        for batch in batches:
            expected = []
            for id, usable in batch:
                expected.append(usable and id in remembered)
                remembered |= {id} if usable else set()
            ids, usable_B = (np.array(values) for values in zip(*batch, strict=True)) if batch else ([], [])
            actual = window.repeated(np.asarray(ids, np.uint64), np.asarray(usable_B, bool))
            assert actual.tolist() == expected
        kept = np.concatenate([np.zeros(0, np.uint64), *window.all()]).tolist()
        assert sorted(kept) == sorted(remembered - set(before))


def test_the_memory_is_of_constant_size_and_raises_no_false_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MOST", 1000)
    monkeypatch.setattr(repeats, "_AT_ONCE", 700)
    ids = np.random.default_rng(0).choice(10**9, 40_000, replace=False).astype(np.uint64)
    old, new = ids[:20_000], ids[20_000:]
    seen, at_once = SeenIds(), SeenIds()
    for batch in np.array_split(old, 13):
        seen.add(batch)
    at_once.add(old)
    repeated = seen.has(old)
    assert repeated.sum() == 1000
    assert np.array_equal(repeated, at_once.has(old)), "what is kept does not depend on how the stream is cut"
    assert not seen.has(new).any()
    few = SeenIds()
    few.add(old[:1000])
    assert few.has(old[:1000]).all()
