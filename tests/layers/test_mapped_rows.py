"""A teacher's vectors through a map: averaged before it, they give the average of what it makes of each."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exfm import Recent, TableOffset
from exfm.layers import MappedRows


def mapped(dtype: torch.dtype = torch.float32) -> MappedRows:
    torch.manual_seed(0)
    found = MappedRows(9, 4, 3, 0.5, dtype=dtype)
    torch.nn.init.normal_(found.map.weight)
    found.keep(torch.arange(1, 9), torch.randn(8, 4))
    return found


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_average_of_a_bag_is_that_of_its_rows(lengths: list[int], seed: int) -> None:
    rows = torch.randint(0, 9, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    one, other = mapped(), mapped()
    fast, slow = one.mean(rows, offsets), TableOffset.mean(other, rows, offsets)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    for added in (fast, slow):
        added.square().sum().backward()
    torch.testing.assert_close(one.map.weight.grad, other.map.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_recent_comes_before_what_is_kept(dtype: torch.dtype) -> None:
    found = mapped(dtype)
    assert torch.equal(found(torch.tensor([0])), torch.zeros(1, 3))
    rows, newer = torch.tensor([2, 2]), torch.randn(2, 4)
    found.recent = {"item": Recent(torch.tensor([False, True]), newer)}
    kept, recent = found(rows, "item")
    torch.testing.assert_close(recent, found.map(newer.to(torch.float32))[1])
    assert torch.equal(kept, found(rows)[0])
