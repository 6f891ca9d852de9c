"""Modules of `exfm.layers` equal loops over their formulas, and their FLOPs are counted."""

from __future__ import annotations

from functools import partial
from math import sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from exfm.components import JaggedSequence
from exfm.layers import (
    Attention,
    AttentionPooling,
    JaggedAttention,
    activation,
    count_flops,
    mlp,
    norm,
    rotate,
    sum_tokens,
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return layer.weight @ x if layer.bias is None else layer.weight @ x + layer.bias


def mix(query: Tensor, keys: list[Tensor], values: list[Tensor], heads: int) -> Tensor:
    """Computes multi-head attention of a query."""
    answer = torch.zeros_like(query)
    for columns in torch.arange(len(query)).chunk(heads):
        powers = [(query[columns] @ key[columns] / sqrt(len(columns))).exp() for key in keys]
        for power, value in zip(powers, values, strict=True):
            answer[columns] += power / sum(powers) * value[columns]
    return answer


def rotated(row: Tensor, position: int, heads: int) -> Tensor:
    """Rotates by complex multiplication; pair p of a head is in columns p and p + P."""
    halves = []
    for head in row.chunk(heads):
        first, second = head.chunk(2)
        angle = position * 10_000.0 ** (-torch.arange(len(first), dtype=torch.float64) / len(first))
        product = torch.complex(first, second) * torch.polar(torch.ones_like(angle), angle)
        halves += [product.real, product.imag]
    return torch.cat(halves)


@given(positions=st.lists(st.integers(-5_000, 5_000), max_size=4), heads=st.integers(1, 3), pairs=st.integers(1, 3))
def test_rotate_is_complex_multiplication(positions: list[int], heads: int, pairs: int) -> None:
    values_ED = random(len(positions), 2 * heads * pairs)
    actual = rotate(values_ED, torch.tensor(positions, dtype=torch.long), heads)
    rows = [rotated(row, position, heads) for row, position in zip(values_ED, positions, strict=True)]
    expected = torch.stack(rows) if rows else values_ED
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@given(query=st.integers(-2_000, 0), key=st.integers(-2_000, 0), shift=st.integers(-2_000, 2_000))
def test_rotated_products_depend_on_distances_alone(query: int, key: int, shift: int) -> None:
    pair = random(2, 8)

    def product(by: int) -> Tensor:
        return rotate(pair, torch.tensor([query + by, key + by]), 2).prod(0).sum()

    torch.testing.assert_close(product(shift), product(0), rtol=1e-9, atol=1e-9)


def test_rotate_keeps_low_precision_types_and_computes_in_float32() -> None:
    values_ED = random(3, 8)
    positions = torch.tensor([0, -700, -4_000])
    low = rotate(values_ED.bfloat16(), positions, 2)
    assert low.dtype == torch.bfloat16
    exact = rotate(values_ED.bfloat16().double(), positions, 2)
    torch.testing.assert_close(low.double(), exact, rtol=1e-2, atol=2e-2)


def test_gradients_of_a_norm_in_bf16_are_those_of_float32() -> None:
    """Of as many rows as a batch of 1,024 examples with 32 tokens has."""
    values, gradient = torch.randn(32_768, 16).bfloat16(), torch.randn(32_768, 16).add(0.1).bfloat16()
    layer, exact = norm("layer_norm", 16), torch.nn.LayerNorm(16)
    output = layer(values)
    assert output.dtype == torch.bfloat16
    output.backward(gradient)
    exact(values.float()).backward(gradient.float())
    for computed, expected in zip(layer.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(computed.grad, expected.grad)


def test_norms() -> None:
    values = random(3, 2, 5)
    for row, by_layer, by_rms in zip(
        values.view(-1, 5),
        norm("layer_norm", 5).double()(values).view(-1, 5),
        norm("rms_norm", 5)(values).view(-1, 5),
        strict=True,
    ):
        centred = row - row.mean()
        torch.testing.assert_close(by_layer, centred / (centred.pow(2).mean() + 1e-5).sqrt(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(by_rms, row / (row.pow(2).mean() + 1e-6).sqrt(), rtol=1e-9, atol=1e-9)
    assert not list(norm("rms_norm", 5).parameters())


@pytest.mark.parametrize("activate_last", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp(activate_last: bool, bias: bool) -> None:
    module = mlp([3, 5, 4, 2], "silu", activate_last=activate_last, bias=bias).double()
    layers = [layer for layer in module if isinstance(layer, nn.Linear)]
    expected = row = random(3)
    for index, layer in enumerate(layers):
        expected = linear(expected, layer)
        if activate_last or index < 2:
            expected = expected / (1 + (-expected).exp())
    torch.testing.assert_close(module(row), expected, rtol=1e-9, atol=1e-9)
    assert len(list(module.parameters())) == (6 if bias else 3)


def test_activations() -> None:
    x = random(20)
    torch.testing.assert_close(activation("relu")(x), x * (x > 0))
    torch.testing.assert_close(activation("silu")(x), x / (1 + (-x).exp()))
    torch.testing.assert_close(activation("gelu")(x), x * (1 + torch.erf(x / sqrt(2))) / 2)


@given(batch=st.integers(0, 3), queries=st.integers(1, 3), keys=st.integers(1, 4), heads=st.integers(1, 3))
def test_attention(batch: int, queries: int, keys: int, heads: int) -> None:
    torch.manual_seed(0)
    module = Attention(2 * heads, heads).double()
    query_BQD, keys_BND = random(batch, queries, 2 * heads), random(batch, keys, 2 * heads, seed=1)
    actual = module(query_BQD, keys_BND)
    assert actual.shape == query_BQD.shape
    for answers, query_rows, key_rows in zip(actual, query_BQD, keys_BND, strict=True):
        projected_keys, values = project_keys(key_rows, module)
        for answer, row in zip(answers, query_rows, strict=True):
            mixed = mix(linear(row, module.query), projected_keys, values, heads)
            torch.testing.assert_close(answer, linear(mixed, module.out), rtol=1e-9, atol=1e-9)


def project_keys(rows: Tensor, module: Attention | JaggedAttention | AttentionPooling) -> tuple[list[Tensor], ...]:
    """Projects rows to keys and values."""
    pairs = [linear(row, module.key_value).chunk(2) for row in rows]
    return [key for key, _ in pairs], [value for _, value in pairs]


def histories(lengths: list[int], dim: int) -> JaggedSequence:
    return JaggedSequence(random(sum(lengths), dim), torch.tensor([0, *lengths]).cumsum(0), 50)


@given(
    lengths=st.lists(st.integers(0, 9), max_size=4),
    heads=st.integers(1, 2),
    queries=st.none() | st.integers(1, 5),
    causal=st.booleans(),
    rotary=st.booleans(),
    bias=st.booleans(),
)
def test_jagged_attention_layer(
    lengths: list[int], heads: int, queries: int | None, causal: bool, rotary: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    module = JaggedAttention(4 * heads, heads, causal=causal, rotary=rotary, bias=bias).double()
    sequence = histories(lengths, 4 * heads)
    expected = []
    for events in torch.split(sequence.values_ED, lengths):
        keys, values = project_keys(events, module)
        if rotary:
            keys = [rotated(key, position, heads) for position, key in enumerate(keys)]
        for position in range(max(0, len(events) - (queries or 50)), len(events)):
            query = linear(events[position], module.query)
            if rotary:
                query = rotated(query, position, heads)
            seen = position + 1 if causal else len(events)
            mixed = mix(query, keys[:seen], values[:seen], heads)
            expected.append(linear(mixed, module.out))
    actual = module(sequence, queries)
    expected_ED = torch.stack(expected) if expected else sequence.values_ED[:0]
    torch.testing.assert_close(actual.values_ED, expected_ED, rtol=1e-9, atol=1e-9)
    assert actual.lengths.tolist() == [min(length, queries or 50) for length in lengths]


@given(
    lengths=st.lists(st.integers(0, 9), max_size=4),
    heads=st.integers(1, 2),
    queries=st.integers(1, 3),
    shifted=st.booleans(),
)
def test_attention_pooling(lengths: list[int], heads: int, queries: int, shifted: bool) -> None:
    torch.manual_seed(0)
    module = AttentionPooling(4 * heads, heads, queries).double()
    sequence, shift_BD = histories(lengths, 4 * heads), random(len(lengths), 4 * heads, seed=1)
    actual = module(sequence, shift_BD if shifted else None)
    assert actual.shape == (len(lengths), queries, 4 * heads)
    for tokens, events, shift in zip(actual, torch.split(sequence.values_ED, lengths), shift_BD, strict=True):
        keys, values = project_keys(events, module)
        for token, query in zip(tokens, module.query_KD, strict=True):
            mixed = mix(query + shift if shifted else query, keys, values, heads)
            torch.testing.assert_close(token, linear(mixed, module.out), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[7, 7, 7], [5, 6, 7]])
def test_flops_are_those_of_the_products(dtype: torch.dtype, lengths: list[int]) -> None:
    """For every dtype, masked or not. A bucket is padded to its longest history, here of 7 events."""
    dim, batch, longest, events = 8, 3, 7, sum(lengths)
    sequence = histories(lengths, dim)
    sequence = sequence.with_values(sequence.values_ED.to(dtype))
    tokens_BND = torch.zeros(batch, 5, dim, dtype=dtype)
    pooling = AttentionPooling(dim, 2, 2).to(dtype)
    assert count_flops(lambda: pooling(sequence)) == (
        4 * events * dim**2 + 2 * batch * 2 * dim**2 + 4 * batch * 2 * longest * dim
    )
    for causal in (True, False):
        layer = JaggedAttention(dim, 2, causal=causal).to(dtype)
        for queries, projected, rows in ((None, events, longest), (2, 2 * batch, 2)):
            assert count_flops(partial(layer, sequence, queries)) == (
                4 * (events + projected) * dim**2 + 4 * batch * rows * longest * dim
            )
    dense = Attention(dim, 2).to(dtype)
    assert count_flops(lambda: dense(tokens_BND, tokens_BND)) == batch * (8 * 5 * dim**2 + 4 * 5 * 5 * dim)
    assert count_flops(lambda: mlp([dim, 6, 3], "relu").to(dtype)(tokens_BND)) == 2 * batch * 5 * (dim * 6 + 6 * 3)


def test_flops_follow_the_events_and_not_the_longest_history() -> None:
    layer = JaggedAttention(8, 2, causal=True)

    def flops(lengths: list[int]) -> int:
        sequence = JaggedSequence(torch.zeros(sum(lengths), 8), torch.tensor([0, *lengths]).cumsum(0), 1_000)
        return count_flops(lambda: layer(sequence))

    assert flops([20] * 50 + [1_000]) == 50 * flops([20]) + flops([1_000])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Attention(8, 3), "3 heads do not divide a width of 8 into whole columns"),
        (lambda: AttentionPooling(8, 5, 2), "5 heads do not divide a width of 8 into whole columns"),
        (lambda: JaggedAttention(9, 3, causal=True), "3 heads do not divide a width of 9 into an even number of"),
    ],
)
def test_heads_that_do_not_fit_are_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("indices", [(1,), (0, 3), (3, 0, 2)])
def test_sum_of_tokens(indices: tuple[int, ...]) -> None:
    tokens_BND = random(5, 4, 3)
    summed_BD = sum_tokens(tokens_BND, indices)
    for tokens_ND, summed_D in zip(tokens_BND, summed_BD, strict=True):
        assert torch.allclose(summed_D, sum((tokens_ND[index] for index in indices), torch.zeros(3).double()))
