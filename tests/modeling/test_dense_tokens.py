"""Dense features: statistics equal numpy's over all that was observed, and no prediction depends on its own batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exfm.modeling.dense_tokens import DenseTokens


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    center=st.floats(-1e6, 1e6),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 99),
)
def test_statistics_equal_numpys(sizes: list[int], center: float, scale: float, seed: int) -> None:
    values = (np.random.default_rng(seed).normal(size=(sum(sizes), 3)) * scale + center).astype(np.float32)
    module = DenseTokens(3, tokens=1, dim=4)
    for batch in torch.from_numpy(values).split(sizes):
        module.observe(batch)
    assert module.count.item() == sum(sizes)
    if sum(sizes):
        exact = values.astype(np.float64)
        np.testing.assert_allclose(module.mean_F.numpy(), exact.mean(axis=0), rtol=1e-9, atol=1e-9)
        variance = module.square_F.numpy() / module.count.item()
        np.testing.assert_allclose(variance, exact.var(axis=0), rtol=1e-6, atol=1e-9)


def test_tokens_are_an_mlp_of_the_standardised_values() -> None:
    module = DenseTokens(2, tokens=3, dim=4)
    values = torch.tensor([[1.0, 100.0], [3.0, 300.0], [5.0, 200.0]])
    module.observe(values)
    scaled = (values - values.mean(dim=0)) / values.std(dim=0, correction=0)
    torch.testing.assert_close(module(values), module.mlp(scaled).view(3, 3, 4))
    assert module(values).shape == (3, 3, 4)


def test_before_anything_was_observed_values_pass_as_they_are() -> None:
    module = DenseTokens(2, tokens=1, dim=4)
    values = torch.tensor([[0.5, -2.0], [100.0, -100.0]])
    torch.testing.assert_close(module(values), module.mlp(values.clamp(-10, 10)).unsqueeze(1))


@pytest.mark.parametrize("value", [0.0, 7.0, -3e38, 3e38])
def test_constant_and_extreme_features_stay_finite(value: float) -> None:
    module = DenseTokens(1, tokens=1, dim=4)
    for _ in range(3):
        batch = torch.full((5, 1), value)
        assert torch.isfinite(module(batch)).all()
        module.observe(batch)
    assert torch.isfinite(module(torch.tensor([[0.0], [3e38], [-3e38]]))).all()


def test_a_prediction_does_not_depend_on_its_own_batch() -> None:
    module = DenseTokens(2, tokens=1, dim=4)
    first, second = torch.randn(8, 2) * 50, torch.randn(8, 2)
    module.observe(torch.randn(100, 2) + 3)
    with torch.no_grad():
        together = module(torch.cat([first, second]))
        torch.testing.assert_close(module(second), together[8:])
        assert torch.equal(module(second), module(second)), "the forward pass changes nothing"


def test_statistics_are_saved_and_are_no_parameters() -> None:
    module = DenseTokens(2, tokens=1, dim=4)
    module.observe(torch.randn(10, 2))
    assert {"count", "mean_F", "square_F"} <= module.state_dict().keys()
    assert not {name for name, _ in module.named_parameters()} & {"count", "mean_F", "square_F"}
    other = DenseTokens(2, tokens=1, dim=4)
    other.load_state_dict(module.state_dict())
    values = torch.randn(3, 2)
    assert torch.equal(module(values), other(values))
