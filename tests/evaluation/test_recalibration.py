"""Recalibration against scikit-learn's logistic regression, and its invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from exfm.evaluation.metrics import Bools, Floats, Moments, entropy
from exfm.evaluation.recalibration import LogitHistogram, Recalibration


def predictions(examples: int, scale: float, shift: float, rate_logit: float = -2.0) -> tuple[Floats, Bools]:
    """Simulates labels, and probabilities whose logits are ``scale`` and ``shift`` away from the truth."""
    rng = np.random.default_rng(3)
    truth = rng.normal(rate_logit, 1.2, examples)
    label = rng.random(examples) < 1 / (1 + np.exp(-truth))
    return (1 / (1 + np.exp(-(truth * scale + shift)))).astype(np.float32), label


def histogram(probability: Floats, label: Bools) -> LogitHistogram:
    logits = LogitHistogram()
    logits.add(probability, label)
    return logits


def fitted(probability: Floats, label: Bools) -> Recalibration:
    recalibration = histogram(probability, label).recalibration()
    assert recalibration is not None
    return recalibration


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.4, 1.5), (2.5, -1.0), (0.02, 0.0), (6.0, 3.0)])
@pytest.mark.parametrize("rate_logit", [-6.0, -2.0, 0.5])
def test_agrees_with_logistic_regression_on_the_exact_logits(scale: float, shift: float, rate_logit: float) -> None:
    probability, label = predictions(20_000, scale, shift, rate_logit)
    p = np.clip(probability.astype(float), 1e-7, 1 - 1e-7)
    logit = np.log(p / (1 - p))[:, None]
    spread = logit.std()
    exact = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-9).fit(logit / spread, label)
    ne = log_loss(label, exact.predict_proba(logit / spread)[:, 1]) / entropy(float(label.mean()))
    ours = fitted(probability, label)
    assert ours.ne == pytest.approx(ne, abs=2e-6 * max(ours.scale**2, 1) / entropy(float(label.mean())) + 1e-9)
    blurred = (32 / 4096 / spread) ** 2 / 12  # share of the logits' variance that lies inside a bin
    assert ours.scale == pytest.approx(exact.coef_[0, 0] / spread, rel=1e-4 + 1.5 * blurred)
    mean = logit.mean()
    assert ours.scale * mean + ours.shift == pytest.approx(
        exact.coef_[0, 0] / spread * mean + exact.intercept_[0], abs=1e-3 + 5 * blurred
    )


def test_true_probabilities_are_left_as_they_are_and_distorted_ones_come_back_to_them() -> None:
    probability, label = predictions(100_000, 1, 0)
    true = fitted(probability, label)
    assert (true.scale, true.shift) == (pytest.approx(1, abs=0.05), pytest.approx(0, abs=0.05))
    assert Moments.from_predictions(probability, label).ne == pytest.approx(true.ne, abs=1e-4)
    distorted, _ = predictions(100_000, 0.5, 1.0)
    back = fitted(distorted, label)
    assert back.ne == pytest.approx(true.ne, abs=1e-5)
    assert (back.scale, back.shift) == (
        pytest.approx(true.scale / 0.5, rel=1e-3),
        pytest.approx(true.shift - true.scale / 0.5, abs=1e-2),
    )
    assert (Moments.from_predictions(distorted, label).ne or 0) > back.ne + 0.1


few_scores = st.lists(st.tuples(st.sampled_from([0.0, 1e-6, 0.1, 0.3, 0.5, 0.9, 1.0]), st.booleans()), max_size=40)


@given(few_scores)
def test_no_monotone_recalibration_beats_it(raw: list[tuple[float, bool]]) -> None:
    probability, label = np.array([p for p, _ in raw]), np.array([positive for _, positive in raw], bool)
    recalibration = histogram(probability, label).recalibration()
    before = Moments.from_predictions(probability, label).ne
    if before is None:
        assert recalibration is None
        return
    if recalibration is None:
        negatives, positives = probability[~label], probability[label]
        assert negatives.max() <= positives.min() and negatives.min() < positives.max()
        return
    assert recalibration.ne <= min(before, 1.0) + 1e-9
    assert recalibration.scale >= 0
    logit = np.log(np.clip(probability, 1e-7, 1 - 1e-7) / (1 - np.clip(probability, 1e-7, 1 - 1e-7)))
    rate = float(label.mean())
    for scale in (0.9, 1.0, 1.1):
        for shift in (-0.1, 0.0, 0.1):
            x = recalibration.scale * scale * logit + recalibration.shift + shift
            ne = float(np.logaddexp(0, np.where(label, -x, x)).mean()) / entropy(rate)
            assert ne >= recalibration.ne - 1e-9
            if (scale, shift) == (1.0, 0.0):
                assert ne == pytest.approx(recalibration.ne, abs=1e-9)


def test_a_ranking_worse_than_chance_is_not_turned_around() -> None:
    probability, label = predictions(5_000, 1, 0)
    turned = fitted(1 - probability, label)
    expected = (1.0, 0.0, math.log(label.sum() / (~label).sum()))
    assert (turned.ne, turned.scale, turned.shift) == pytest.approx(expected)


@pytest.mark.parametrize("value", [0.0, 0.123, 1.0])
def test_a_constant_becomes_the_base_rate(value: float) -> None:
    label = np.arange(10_000) % 13 == 0
    constant = fitted(np.full(10_000, value, np.float32), label)
    assert (constant.ne, constant.scale) == (pytest.approx(1, abs=1e-12), 0)


@pytest.mark.parametrize(
    ("probability", "label"),
    [([], []), ([0.2, 0.4], [True, True]), ([0.1, 0.2, 0.7], [False, False, True]), ([0.1, 0.2, 0.2], [0, 0, 1])],
    ids=["empty", "one class", "apart", "apart but for a tie"],
)
def test_where_there_is_no_best_recalibration_there_is_none(probability: list[float], label: list[bool]) -> None:
    assert histogram(np.array(probability, np.float32), np.array(label, bool)).recalibration() is None


def test_histograms_of_stretches_add_up() -> None:
    probability, label = predictions(3_000, 0.7, 0.3)
    total = LogitHistogram()
    for start in range(0, 3_000, 700):
        total += histogram(probability[start : start + 700], label[start : start + 700])
    together = fitted(probability, label)
    apart = total.recalibration()
    assert apart is not None
    assert (apart.ne, apart.scale, apart.shift) == (
        pytest.approx(together.ne, abs=1e-12), pytest.approx(together.scale), pytest.approx(together.shift)
    )  # fmt: skip
