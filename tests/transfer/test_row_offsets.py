"""Projected teacher vectors of rows: averaged before a linear projection, and overridden by newer ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exfm.layers import scaled_identity
from exfm.modeling.row_offset import RowOffset
from exfm.modeling.vector_table import RowVectors, VectorOverride, VectorTable
from exfm.transfer.row_offsets import OffsetSum, ProjectedVectors


def projected(projection: nn.Module | None = None, dtype: torch.dtype = torch.float32) -> ProjectedVectors:
    torch.manual_seed(0)
    if projection is None:
        projection = scaled_identity(4, 3, 0.5)
        nn.init.normal_(projection.weight)
    offset = ProjectedVectors(VectorTable(9, 4, dtype), projection)
    offset.vectors.store(RowVectors(torch.arange(1, 9), torch.randn(8, 4)))
    return offset


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 99))
def test_the_average_of_a_bag_is_that_of_its_rows(lengths: list[int], seed: int) -> None:
    rows = torch.randint(0, 9, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    offset, other = projected(), projected()
    fast, slow = offset.mean(rows, offsets), RowOffset.mean(other, rows, offsets)
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-6)
    for added in (fast, slow):
        added.square().sum().backward()
    assert isinstance(offset.projection, nn.Linear) and isinstance(other.projection, nn.Linear)
    torch.testing.assert_close(offset.projection.weight.grad, other.projection.weight.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("projection", [nn.Linear(4, 3), nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh())])
def test_a_projection_that_is_not_linear_comes_before_the_average(projection: nn.Module) -> None:
    offset = projected(projection)
    rows, offsets = torch.tensor([1, 2, 5]), torch.tensor([0, 2, 2, 3])
    each = offset(rows)
    expected = torch.stack([(each[0] + each[1]) / 2, torch.zeros(3), each[2]])
    torch.testing.assert_close(offset.mean(rows, offsets), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_override_comes_before_the_stored_vector(dtype: torch.dtype) -> None:
    offset = projected(dtype=dtype)
    assert torch.equal(offset(torch.tensor([0])), torch.zeros(1, 3))
    rows, newer = torch.tensor([2, 2]), torch.randn(2, 4)
    offset.vectors.overrides = {"item": VectorOverride(torch.tensor([[False], [True]]), newer.unsqueeze(1))}
    stored, overridden = offset(rows, "item")
    torch.testing.assert_close(overridden, offset.projection(newer)[1])
    assert torch.equal(stored, offset(rows)[0])


def test_the_last_vector_of_a_row_is_stored() -> None:
    table = VectorTable(5, 2)
    table.store(RowVectors(torch.tensor([1, 3, 1]), torch.tensor([[1.0, 1], [2, 2], [3, 3]])))
    table.store(RowVectors(torch.tensor([3]), torch.tensor([[4.0, 4]])))
    assert table.vectors_RK[:, 0].tolist() == [0, 3, 0, 4, 0]


def test_offsets_of_several_teachers_add_up() -> None:
    first, second = projected(), projected(nn.Linear(4, 3))
    rows, offsets = torch.tensor([1, 2, 5]), torch.tensor([0, 2, 3])
    both = OffsetSum([first, second])
    assert torch.equal(both(rows), first(rows) + second(rows))
    assert torch.equal(both.mean(rows, offsets), first.mean(rows, offsets) + second.mean(rows, offsets))
