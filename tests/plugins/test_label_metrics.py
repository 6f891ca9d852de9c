"""The built-in metrics: the kit, and their definitions by loops."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

import exfm
import exfm_plugins.metrics
from exfm.testing import MetricTests
from exfm_plugins.metrics.accuracy.metric import Accuracy
from exfm_plugins.metrics.concordance.metric import Concordance
from exfm_plugins.metrics.mae.metric import MAE
from exfm_plugins.metrics.rmse.metric import RMSE
from exfm_plugins.metrics.top_k.metric import TopK


class TestRMSE(MetricTests):
    component = RMSE
    plugin = exfm_plugins.metrics


class TestMAE(MetricTests):
    component = MAE
    plugin = exfm_plugins.metrics


class TestConcordance(MetricTests):
    component = Concordance
    plugin = exfm_plugins.metrics


class TestAccuracy(MetricTests):
    component = Accuracy
    plugin = exfm_plugins.metrics


class TestTopK(MetricTests):
    component = TopK
    plugin = exfm_plugins.metrics
    configs = ({"k": 1}, {"k": 3})


def rows(prediction: Any, label: Any, weight: Any) -> exfm.MetricRows:
    """Makes examples of a group."""
    label_E = np.asarray(label, np.float64)
    return exfm.MetricRows(
        np.asarray(prediction, np.float64), label_E, np.asarray(weight, np.float64), label_E.astype(int)
    )


def value(component: type[Any], examples: exfm.MetricRows, **fields: Any) -> float:
    """The value of a metric of some examples."""
    metric = component(component.Config(**fields))
    computed: float = metric.value(metric.sums(examples))
    return computed


def test_errors_are_means_by_weight() -> None:
    examples = rows([1.0, 2.0, 5.0], [0.0, 4.0, 5.5], [1, 2, 1])
    assert value(RMSE, examples) == pytest.approx(((1 + 2 * 4 + 0.25) / 4) ** 0.5)
    assert value(MAE, examples) == pytest.approx((1 + 2 * 2 + 0.5) / 4)


def test_concordance_counts_pairs_of_different_labels() -> None:
    random = np.random.default_rng(0)
    prediction, label = random.integers(0, 4, 30), random.integers(0, 5, 30)
    weight = random.integers(0, 3, 30)
    right = total = 0.0
    for i, j in combinations(range(30), 2):
        if label[i] != label[j]:
            agrees = np.sign(label[i] - label[j]) == np.sign(prediction[i] - prediction[j])
            total += weight[i] * weight[j]
            right += weight[i] * weight[j] * (0.5 if prediction[i] == prediction[j] else float(agrees))
    assert value(Concordance, rows(prediction, label, weight), pairs=29) == pytest.approx(right / total)
    assert value(Concordance, rows(label, label, weight), pairs=3) == 1.0


def test_classes_are_right_where_the_true_class_ranks_high() -> None:
    prediction = [[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.25, 0.5, 0.25], [0.4, 0.4, 0.2]]
    examples = rows(prediction, [0, 1, 2, 0], [1, 1, 2, 1])
    assert value(Accuracy, examples) == pytest.approx((1 + 0 + 0 + 1) / 5)
    # Ties count by expectation, as those of the second example and of the third.
    assert value(TopK, examples, k=2) == pytest.approx((1 + 0.5 + 2 * 0.5 + 1) / 5)
    assert value(TopK, examples, k=3) == 1.0
