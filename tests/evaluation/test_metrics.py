"""Metrics against scikit-learn, against values computed by hand, and states of stretches against the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from exfm.evaluation.metrics import AucHistogram, Moments, auc, entropy, log_losses


def clicks(examples: int, base_logit: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Simulates noisy but informative float32 predictions and their labels."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(base_logit, 1.0, examples)
    label = rng.random(examples) < 1 / (1 + np.exp(-truth))
    return (1 / (1 + np.exp(-truth - rng.normal(0, 0.5, examples)))).astype(np.float32), label


def test_log_loss_agrees_with_scikit_learn() -> None:
    probability, label = clicks(5_000, -2)
    assert Moments.from_predictions(probability, label).log_loss == pytest.approx(
        log_loss(label, probability.astype(float)), rel=1e-9
    )


def test_a_confident_mistake_costs_a_finite_amount() -> None:
    losses = log_losses(np.array([0, 1, 0, 1], np.float32), np.array([True, False, False, True]))
    assert losses == pytest.approx([-math.log(1e-7), -math.log(1e-7), 1e-7, 1e-7], rel=1e-6)


def test_ne_by_hand() -> None:
    moments = Moments.from_predictions(np.array([0.5, 0.5, 0.5, 0.5]), np.array([True, False, False, False]))
    expected = math.log(2) / (-0.25 * math.log(0.25) - 0.75 * math.log(0.75))
    assert moments.ne == pytest.approx(expected, rel=1e-12)
    assert moments.calibration == pytest.approx(2.0)
    assert moments.base_rate == 0.25


def test_predicting_the_base_rate_has_ne_one() -> None:
    label = np.arange(1000) < 37
    assert Moments.from_predictions(np.full(1000, 0.037), label).ne == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_entropy_of_certainty_is_zero(rate: float) -> None:
    assert entropy(rate) == 0


@pytest.mark.parametrize("label", [[], [True, True], [False]])
def test_figures_without_a_meaning_are_none(label: list[bool]) -> None:
    labels, probability = np.array(label, bool), np.full(len(label), 0.3, np.float32)
    moments, histogram = Moments.from_predictions(probability, labels), AucHistogram()
    histogram.add(probability, labels)
    assert moments.ne is None
    assert (moments.log_loss is None) == (moments.base_rate is None) == (not label)
    assert (moments.calibration is None) == (not any(label))
    assert auc(probability, labels) is None
    assert histogram.auc is None
    assert histogram.error_bound is None


@pytest.mark.parametrize("base_logit", [-6, -3, 0, 3])
def test_both_aucs_agree_with_scikit_learn(base_logit: float) -> None:
    probability, label = clicks(200_000, base_logit)
    expected = roc_auc_score(label, probability)
    histogram = AucHistogram()
    histogram.add(probability, label)
    assert auc(probability, label) == pytest.approx(expected, abs=1e-12)
    assert histogram.auc == pytest.approx(expected, abs=1e-6)
    assert histogram.error_bound is not None
    assert abs(histogram.auc - expected) <= histogram.error_bound < 1e-4


scores = st.lists(st.tuples(st.floats(2**-22, 1 - 2**-22, width=32), st.booleans()), min_size=2, max_size=40)


@given(scores)
def test_histogram_never_leaves_its_error_bound(rows: list[tuple[float, bool]]) -> None:
    probability, label = np.array([p for p, _ in rows], np.float32), np.array([y for _, y in rows])
    exact = auc(probability, label)
    histogram = AucHistogram()
    histogram.add(probability, label)
    if exact is None:
        assert histogram.auc is None
    else:
        assert exact == pytest.approx(roc_auc_score(label, probability), abs=1e-12)
        assert histogram.auc is not None and histogram.error_bound is not None
        assert abs(histogram.auc - exact) <= histogram.error_bound + 1e-12


@given(st.lists(st.tuples(st.integers(1, 63), st.booleans()), min_size=1, max_size=40))
def test_histogram_is_exact_where_no_two_scores_share_a_bin(rows: list[tuple[int, bool]]) -> None:
    probability, label = np.array([k / 64 for k, _ in rows], np.float32), np.array([y for _, y in rows])
    histogram = AucHistogram()
    histogram.add(probability, label)
    assert histogram.auc == auc(probability, label)


@pytest.mark.parametrize("lower, higher", [(1e-5, 1.0001e-5), (0.999, 0.9990001), (0.5, 0.50002)])
def test_histogram_tells_close_scores_apart_at_both_ends(lower: float, higher: float) -> None:
    histogram = AucHistogram()
    histogram.add(np.array([lower, higher], np.float32), np.array([False, True]))
    assert (histogram.auc, histogram.error_bound) == (1, 0)


def test_histogram_takes_the_borders_of_its_range() -> None:
    histogram = AucHistogram()
    histogram.add(np.array([0, 1e-9, 0.5, 0.50000006, 1], np.float32), np.array([False, False, True, True, True]))
    assert histogram.auc == 1
    assert histogram.counts[0, 0] == 2
    assert histogram.counts[-1, 1] == 1


@pytest.mark.parametrize("cut", [0, 1, 777, 2_000])
def test_stretches_add_up_to_the_whole(cut: int) -> None:
    probability, label = clicks(2_000, -1)
    whole, left, right = AucHistogram(), AucHistogram(), AucHistogram()
    whole.add(probability, label)
    left.add(probability[:cut], label[:cut])
    right.add(probability[cut:], label[cut:])
    assert np.array_equal((left + right).counts, whole.counts)

    total = Moments.from_predictions(probability, label)
    left_sums = Moments.from_predictions(probability[:cut], label[:cut])
    merged = left_sums + Moments.from_predictions(probability[cut:], label[cut:])
    assert (merged.examples, merged.positives) == (total.examples, total.positives)
    assert merged.loss_sum == pytest.approx(total.loss_sum, rel=1e-12)
    assert merged.prediction_sum == pytest.approx(total.prediction_sum, rel=1e-12)
