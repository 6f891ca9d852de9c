"""Missing numbers: statistics are those of the present numbers, on any number of processes; no other row changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from exfm.interfaces.process_group import ProcessGroup
from exfm.modeling.dense_tokens import DenseTokens, EventNumbers
from tests.thread_group import in_threads

HOW = ("mean", None, "learned")


def observed_by(processes: int, batches: Sequence[Tensor]) -> DenseTokens:
    """Statistics after batches whose rows are dealt out to some processes."""
    modules = [DenseTokens(3, tokens=1, dim=4, missing=HOW) for _ in range(processes)]

    def observe(process_group: ProcessGroup) -> None:
        for batch in batches:
            modules[process_group.rank].observe(batch[process_group.rank :: processes], process_group)

    in_threads(observe, processes)
    for module in modules[1:]:
        assert torch.equal(module.square_F, modules[0].square_F), "the processes agree bit for bit"
    return modules[0]


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    share=st.sampled_from([0.0, 0.3, 0.95]),
    processes=st.sampled_from([1, 3]),
    seed=st.integers(0, 99),
)
def test_statistics_are_those_of_present_numbers(sizes: list[int], share: float, processes: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = (random.normal(size=(sum(sizes), 3)) * 7 + 100).astype(np.float32)
    values[:, [0, 2]] = np.where(random.random((sum(sizes), 2)) < share, np.nan, values[:, [0, 2]])
    module = observed_by(processes, torch.from_numpy(values).split(sizes))
    assert module.count.item() == sum(sizes)
    for feature in range(3):
        present = values[:, feature][~np.isnan(values[:, feature])].astype(np.float64)
        assert module.missing_F[feature].item() == sum(sizes) - present.size
        if present.size:
            np.testing.assert_allclose(module.mean_F[feature].item(), present.mean(), rtol=1e-9)
            np.testing.assert_allclose(
                module.square_F[feature].item(), present.var() * present.size, rtol=1e-6, atol=1e-6
            )


def taught(missing: Sequence[str | None] = HOW) -> DenseTokens:
    torch.manual_seed(0)
    module = DenseTokens(3, tokens=2, dim=4, missing=missing)
    module.observe(torch.randn(50, 3, generator=torch.Generator().manual_seed(1)) * 3 + 5)
    return module


def test_a_model_whose_numbers_are_all_present_is_as_without() -> None:
    with_missing, without = taught(), taught((None, None, None))
    assert "missing_F" not in without.state_dict() and not hasattr(without, "fill_F")
    values_BF = torch.randn(20, 3)
    assert torch.equal(with_missing(values_BF), without(values_BF))


def test_a_missing_number_is_the_mean_and_then_what_is_learned_of_it() -> None:
    module = taught()
    values_BF = torch.randn(4, 3) + 5
    absent_BF = values_BF.clone()
    absent_BF[1, 0] = absent_BF[2, 2] = torch.nan
    at_mean_BF = values_BF.clone()
    at_mean_BF[1, 0], at_mean_BF[2, 2] = module.mean_F[0].float(), module.mean_F[2].float()
    torch.testing.assert_close(module(absent_BF), module(at_mean_BF), rtol=0, atol=1e-6)
    assert torch.equal(module(absent_BF)[[0, 3]], module(values_BF)[[0, 3]]), "other rows keep their bits"
    before_BND = module(absent_BF)
    before_BND.sum().backward()
    assert module.indicator_HF.grad is not None and module.fill_F.grad is not None
    # Only the feature with `mean` has an indicator, and only the feature with `learned` has a fill.
    assert module.indicator_HF.grad.any(dim=0).tolist() == [True, False, False]
    assert module.fill_F.grad.ne(0).tolist() == [False, False, True]
    with torch.no_grad():
        module.indicator_HF.add_(0.3)
        module.fill_F.add_(0.7)
    changed_B = (module(absent_BF) != before_BND).any(dim=2).any(dim=1)
    assert changed_B.tolist() == [False, True, True, False]


def test_a_feature_that_was_never_present_stays_finite() -> None:
    module = DenseTokens(3, tokens=1, dim=4, missing=HOW)
    values_BF = torch.tensor([[torch.nan, 1.0, 2.0], [torch.nan, 3.0, 4.0]])
    for _ in range(2):
        assert torch.isfinite(module(values_BF)).all()
        module.observe(values_BF)
    assert torch.isfinite(module(torch.full((1, 3), 2.0))).all() and module.mean_F[0] == 0


@pytest.mark.parametrize("missing", [False, True])
def test_numbers_of_events_add_a_vector_in_place_of_their_term(missing: bool) -> None:
    module = EventNumbers(2, 3, missing)
    numbers_EG = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    expected_ED = numbers_EG @ module.weight.T + module.bias
    torch.testing.assert_close(module(module.prepare(numbers_EG)), expected_ED)
    if missing:
        with torch.no_grad():
            module.indicator_DG.copy_(torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]]))
        absent_EG = torch.tensor([[1.0, torch.nan], [3.0, -1.0]])
        expected_ED[0] = module.weight[:, 0] + module.bias + torch.tensor([1.0, 2.0, 3.0])
        torch.testing.assert_close(module(module.prepare(absent_EG)), expected_ED)
