"""Both ways to pool the table rows of examples compute the same, whatever the examples have."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exfm.serving.served_model import pool_by_adding, pool_fused


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(0, 4), min_size=1, max_size=7), weighted=st.booleans(), seed=st.integers(0, 99))
def test_rows_are_pooled_alike(lengths: list[int], weighted: bool, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    table, lengths_B = torch.randn(5, 3, generator=random), torch.tensor(lengths)
    count = int(lengths_B.sum())
    rows_V = torch.randint(0, 5, (count,), generator=random)
    starts = lengths_B.cumsum(0) - lengths_B
    weights_V = torch.rand(count, generator=random) if weighted else None
    expected = pool_fused(rows_V, table, starts, weights_V)
    torch.testing.assert_close(pool_by_adding(rows_V, table, starts, weights_V), expected)
    for number, length in enumerate(lengths):
        if not length:
            assert (expected[number] == 0).all()
