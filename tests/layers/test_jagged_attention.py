"""`jagged_attention` equals a loop over examples, heads and queries, and pads little."""

from __future__ import annotations

from math import log, sqrt
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from exfm.components import JaggedSequence
from exfm.layers import JaggedAttention, group_sizes, jagged_attention

LONGEST = 200


def jagged(lengths: list[int], dim: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> JaggedSequence:
    generator = torch.Generator().manual_seed(seed)
    values_ED = torch.randn(sum(lengths), dim, generator=generator, dtype=torch.float64).to(dtype)
    return JaggedSequence(values_ED, torch.tensor([0, *lengths]).cumsum(0), LONGEST)


def examples(sequence: JaggedSequence, values_ED: Tensor | None = None) -> list[Tensor]:
    values_ED = sequence.values_ED if values_ED is None else values_ED
    return list(torch.split(values_ED, sequence.lengths.tolist()))


def by_formula(query: JaggedSequence, key: JaggedSequence, value_ED: Tensor, heads: int, causal: bool) -> Tensor:
    rows = []
    for queries, keys, values in zip(examples(query), examples(key), examples(key, value_ED), strict=True):
        for position, q in enumerate(queries):
            # The last query is the last event.
            seen = len(keys) - len(queries) + position + 1 if causal else len(keys)
            answer = torch.zeros_like(q)
            for columns in torch.arange(len(q)).chunk(heads):
                weights = (keys[:seen, columns] @ q[columns] / sqrt(len(columns))).softmax(0)
                answer = answer.index_copy(0, columns, weights @ values[:seen, columns])
            rows.append(answer)
    return torch.stack(rows) if rows else torch.zeros_like(query.values_ED)


def leaf_inputs(lengths: list[int], dim: int) -> tuple[JaggedSequence, JaggedSequence, Tensor]:
    """Makes queries, keys and values, which are leaves of a graph."""
    key = jagged(lengths, dim, seed=1)
    query, value_ED = (jagged(lengths, dim, seed).values_ED.requires_grad_() for seed in (0, 2))
    key.values_ED.requires_grad_()
    return key.with_values(query), key, value_ED


@given(
    lengths=st.lists(st.integers(0, 12) | st.integers(0, 45), max_size=6),
    heads=st.integers(1, 3),
    causal=st.booleans(),
    kept=st.none() | st.integers(1, 9),
)
def test_equals_the_formula_and_its_gradients(lengths: list[int], heads: int, causal: bool, kept: int | None) -> None:
    everything, key, value_ED = leaf_inputs(lengths, 2 * heads)
    query = everything if kept is None else everything.recent(kept)
    actual = jagged_attention(query, key, value_ED, heads, causal=causal)
    expected = by_formula(query, key, value_ED, heads, causal)
    torch.testing.assert_close(actual.values_ED, expected, rtol=1e-9, atol=1e-9)
    assert actual.offsets is query.offsets
    leaves = (everything.values_ED, key.values_ED, value_ED)
    if sum(lengths):
        slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3), dtype=expected.dtype)
        gradients = torch.autograd.grad(actual.values_ED, leaves, slope, retain_graph=True)
        torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, slope), rtol=1e-9, atol=1e-9)


@given(pairs=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 40)), min_size=1, max_size=6))
def test_queries_need_not_be_events(pairs: list[tuple[int, int]]) -> None:
    """As in pooling and cross-attention, numbers of queries and keys differ, and an example may have no keys."""
    queries, keys = (list(column) for column in zip(*pairs, strict=True))
    query, key, value_ED = jagged(queries, 4), jagged(keys, 4, seed=1), jagged(keys, 4, seed=2).values_ED
    actual = jagged_attention(query, key, value_ED, 2, causal=False)
    expected = by_formula(query, key, value_ED, 2, causal=False)
    torch.testing.assert_close(actual.values_ED, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [True, False])
def test_keeps_the_dtype(dtype: torch.dtype, causal: bool) -> None:
    lengths = [3, 0, 70, 12]
    values = [jagged(lengths, 8, seed, dtype) for seed in range(3)]
    actual = jagged_attention(values[0], values[1], values[2].values_ED, 2, causal=causal).values_ED
    exact = [sequence.with_values(sequence.values_ED.double()) for sequence in values]
    expected = by_formula(exact[0], exact[1], exact[2].values_ED, 2, causal)
    assert actual.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    assert (actual.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kept", [LONGEST, 3])
def test_a_broken_example_breaks_no_other(causal: bool, kept: int) -> None:
    """Padding never reads another example's events: a NaN stays in its example."""
    key = jagged([9, 5, 0, 7], 4)
    expected = jagged_attention(key.recent(kept), key, key.values_ED, 2, causal=causal)
    broken = key.with_values(key.values_ED.index_fill(0, torch.arange(9, 14), torch.nan))
    actual = jagged_attention(broken.recent(kept), broken, broken.values_ED, 2, causal=causal)
    for example, (mixed, unbroken) in enumerate(zip(examples(actual), examples(expected), strict=True)):
        assert mixed.isnan().all() if example == 1 else torch.equal(mixed, unbroken)


class Attending(nn.Module):
    """Computes attention of the most recent events over all events."""

    def __init__(self, causal: bool, kept: int) -> None:
        super().__init__()
        self.causal, self.kept = causal, kept

    def forward(self, values_ED: Tensor, offsets: Tensor) -> Tensor:
        key = JaggedSequence(values_ED, offsets, LONGEST)
        return jagged_attention(key.recent(self.kept), key, values_ED.cos(), 2, causal=self.causal).values_ED


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kept", [LONGEST, 3])
def test_a_captured_graph_computes_the_same(causal: bool, kept: int) -> None:
    module, dynamic = Attending(causal, kept), torch.export.Dim.DYNAMIC
    first = jagged([4, 0, 11], 4)
    program = torch.export.export(
        module, (first.values_ED, first.offsets), dynamic_shapes=({0: dynamic}, {0: dynamic})
    ).module()
    for lengths in ([4, 0, 11], [30, 1], [0, 0, 0, 0]):
        other = jagged(lengths, 4)
        arguments = (other.values_ED, other.offsets)
        torch.testing.assert_close(program(*arguments), module(*arguments), rtol=1e-9, atol=1e-9)


class LargestTensor(TorchDispatchMode):
    """Tracks the number of elements of the largest tensor that an operation returns."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.size = max(self.size, tensor.numel())
        return result


def test_a_long_history_among_short_histories() -> None:
    """No history is padded to the longest, and no matrix of all pairs of events is stored."""
    torch.manual_seed(0)
    lengths, dim, longest = [30] * 40 + [4_000] + [50] * 40, 8, 4_000
    layer = JaggedAttention(dim, 2, causal=True).double()
    events_ED = torch.randn(sum(lengths), dim, dtype=torch.float64, requires_grad=True)
    sequence = JaggedSequence(events_ED, torch.tensor([0, *lengths]).cumsum(0), longest)
    with LargestTensor() as largest:
        mixed = layer(sequence)
        mixed.values_ED.sum().backward()
    assert largest.size <= 2 * dim * sum(lengths) * 1.5

    first, last = 30 * 40, 30 * 40 + 4_000
    history = events_ED[first:last].detach()
    alone = layer(JaggedSequence(history, torch.tensor([0, 4_000]), longest), queries=5)
    key, value = layer.key_value(history).chunk(2, dim=1)
    far = 4_000 - torch.arange(1.0, 4_001, dtype=torch.float64)
    # Rotary embedding of two pairs of columns per head, as complex numbers, by the distance to the newest event.
    turn = torch.polar(
        torch.ones(4_000, 2, dtype=torch.float64), -far[:, None] * torch.tensor([1, 0.01], dtype=torch.float64)
    )
    mix = []
    for head in range(2):
        columns = slice(4 * head, 4 * head + 4)
        q, k = (torch.complex(x[:, columns][:, :2], x[:, columns][:, 2:]) for x in (layer.query(history), key))
        scores = ((q * turn)[-5:] @ (k * turn).conj().T).real / 2
        unseen = torch.ones(5, 4_000, dtype=torch.bool).triu(4_000 - 5 + 1)
        mix.append(scores.masked_fill(unseen, -torch.inf).softmax(1) @ value[:, columns])
    expected = layer.out(torch.cat(mix, dim=1))
    torch.testing.assert_close(mixed.values_ED[last - 5 : last], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(alone.values_ED, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's kernel for variable lengths is for GPUs")
@pytest.mark.parametrize("causal", [True, False])
def test_a_gpu_computes_the_formula(causal: bool) -> None:
    lengths = [3, 0, 70, 12]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        on_gpu = [
            JaggedSequence(x.values_ED.cuda(), x.offsets.cuda(), LONGEST)
            for x in (jagged(lengths, 32, seed, dtype) for seed in range(3))
        ]
        actual = jagged_attention(on_gpu[0].recent(5), on_gpu[1], on_gpu[2].values_ED, 2, causal=causal).values_ED
        query, key, value = (jagged(lengths, 32, seed) for seed in range(3))
        expected = by_formula(query.recent(5), key, value.values_ED, 2, causal)
        assert (actual.double().cpu() - expected).norm() <= tolerance * expected.norm()


@given(lengths=st.lists(st.integers(1, 3_000), min_size=1, max_size=40), growth=st.floats(1.1, 2.0))
def test_groups_are_of_similar_length(lengths: list[int], growth: float) -> None:
    """Every example is in a group, whose longest has less than ``growth`` times the events of the shortest, or 8."""
    lengths = sorted(lengths, reverse=True)
    sizes = group_sizes(torch.tensor(lengths), growth)
    assert sum(sizes) == len(lengths) and min(sizes) > 0
    start = 0
    for size in sizes:
        longest, shortest = lengths[start], lengths[start + size - 1]
        assert max(longest, 8) < growth * max(shortest, 8) * (1 + 1e-9)
        start += size
    most = log(max(lengths[0], 8) / 8) / log(growth) + 2
    assert len(sizes) <= most
