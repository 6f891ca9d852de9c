"""The built-in task heads: the kit, and their equations written down a second time in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import exfm
import exfm_plugins.heads
from exfm.schema import Label
from exfm.testing import TaskHeadTests
from exfm_plugins.heads.bins.head import Bins
from exfm_plugins.heads.huber.head import Huber
from exfm_plugins.heads.log_normal.head import LogNormal
from exfm_plugins.heads.mse.head import MSE
from exfm_plugins.heads.softmax.head import Softmax

SECONDS = np.array([0.0, 12.0, 3.5, 240.0, 31.0, 7.0])
WEIGHTS = np.array([1.0, 2.0, 1.0, 1.0, 0.0, 3.0])
WATCH = Label(name="watch", kind="regression", minimum=0)


class TestMSE(TaskHeadTests):
    component = MSE
    plugin = exfm_plugins.heads
    configs = ({}, {"scale": 30.0})


class TestHuber(TaskHeadTests):
    component = Huber
    plugin = exfm_plugins.heads
    configs = ({}, {"delta": 0.25, "scale": 30.0})


class TestLogNormal(TaskHeadTests):
    component = LogNormal
    plugin = exfm_plugins.heads


class TestBins(TaskHeadTests):
    component = Bins
    plugin = exfm_plugins.heads
    configs = ({"values": [0, 1, 5, 30, 600]},)


class TestSoftmax(TaskHeadTests):
    component = Softmax
    plugin = exfm_plugins.heads


def started(component: type[Any], **fields: Any) -> Any:
    """A head of watch times that has seen ``SECONDS``, in double precision."""
    head = component(component.Config(**fields), WATCH).double()
    head.start(torch.from_numpy(SECONDS), torch.from_numpy(WEIGHTS))
    return head


def unit(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Weighted mean and deviation."""
    mean = float(np.average(values, weights=WEIGHTS))
    return mean, math.sqrt(np.average((values - mean) ** 2, weights=WEIGHTS))


def test_squared_error_is_in_deviations_of_the_first_labels() -> None:
    mean, deviation = unit(SECONDS)
    head, output = started(MSE), torch.tensor([0.5, -1.0], dtype=torch.float64)
    label = np.array([20.0, 7.0])
    expected = (mean + deviation * output.numpy() - label) ** 2 / (2 * deviation**2)
    np.testing.assert_allclose(head.loss(output, torch.from_numpy(label)).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(head.predict(output).numpy(), mean + deviation * output.numpy(), rtol=1e-6)


@pytest.mark.parametrize("delta", [0.25, 2.0])
def test_huber_is_squared_near_and_linear_far(delta: float) -> None:
    head = started(Huber, delta=delta, scale=10.0)
    mean = unit(SECONDS)[0]
    output, label = np.array([0.0, 1.0, -3.0]), np.array([mean + 1.0, mean - 5.0, 100.0])
    distance = np.abs(output - (label - mean) / 10)
    expected = np.where(distance <= delta, distance**2 / 2, delta * (distance - delta / 2))
    actual = head.loss(torch.from_numpy(output), torch.from_numpy(label)).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_log_normal_is_a_likelihood_whose_mean_is_predicted() -> None:
    head = started(LogNormal)
    mean, deviation = unit(np.log1p(SECONDS))
    output = np.array([[0.5, -0.7], [-1.0, 0.3]])
    m, s = mean + deviation * output[:, 0], deviation * np.exp(output[:, 1])
    label = np.array([20.0, 0.0])
    # The density of y is that of log(1 + y), divided by 1 + y, which does not depend on the outputs.
    density = np.exp(-((np.log1p(label) - m) ** 2) / (2 * s**2)) / (s * math.sqrt(2 * math.pi))
    constant = 0.5 * math.log(2 * math.pi) + math.log(deviation)
    loss = head.loss(torch.from_numpy(output), torch.from_numpy(label)).numpy()
    np.testing.assert_allclose(loss + constant, -np.log(density), rtol=1e-5)
    # The expected value by quadrature over the normal logarithm.
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(80)
    expected = np.array([(np.exp(mi + si * nodes) - 1) @ node_weights for mi, si in zip(m, s, strict=True)])
    expected /= math.sqrt(2 * math.pi)
    np.testing.assert_allclose(head.predict(torch.from_numpy(output)).numpy(), expected, rtol=1e-6)


def test_bins_mix_the_two_values_around_a_label() -> None:
    values = [0.0, 10.0, 30.0, 600.0]
    head = Bins(Bins.Config(values=values), WATCH).double()
    labels = np.array([0.0, 2.5, 10.0, 25.0, 600.0, 9_999.0, -3.0])
    mixture = np.array(
        [[1, 0, 0, 0], [0.75, 0.25, 0, 0], [0, 1, 0, 0], [0, 0.25, 0.75, 0], *[[0, 0, 0, 1]] * 2, [1, 0, 0, 0]]
    )
    output = np.random.default_rng(0).normal(size=(7, 4))
    log_p = output - np.log(np.exp(output).sum(axis=1, keepdims=True))
    loss = head.loss(torch.from_numpy(output), torch.from_numpy(labels)).numpy()
    np.testing.assert_allclose(loss, -(mixture * log_p).sum(axis=1), rtol=1e-9)
    np.testing.assert_allclose(head.predict(torch.from_numpy(output)).numpy(), np.exp(log_p) @ values, rtol=1e-9)


def test_softmax_learns_classes_and_a_teachers_probabilities() -> None:
    head = Softmax(Softmax.Config(), Label(name="action", kind="multiclass", classes=3)).double()
    output, label = np.random.default_rng(0).normal(size=(4, 3)), np.array([0.0, 2.0, 1.0, 2.0])
    log_p = output - np.log(np.exp(output).sum(axis=1, keepdims=True))
    loss = head.loss(torch.from_numpy(output), torch.from_numpy(label)).numpy()
    np.testing.assert_allclose(loss, -log_p[np.arange(4), label.astype(int)], rtol=1e-9)
    teacher = np.random.default_rng(1).dirichlet(np.ones(3), size=4)
    soft = head.soft_loss(torch.from_numpy(output), torch.from_numpy(teacher)).numpy()
    np.testing.assert_allclose(soft, -(teacher * log_p).sum(axis=1), rtol=1e-9)


@pytest.mark.parametrize(
    ("component", "fields", "label", "message"),
    [
        (LogNormal, {}, Label(name="delta", kind="regression"), "delta has minimum: None; give it minimum: 0"),
        (Bins, {"values": [0, 5, 5]}, WATCH, "they ascend"),
    ],
)
def test_what_a_head_cannot_learn_it_refuses(component: Any, fields: Any, label: Label, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        component(component.Config(**fields), label)


def test_a_head_names_its_kind_of_label() -> None:
    with pytest.raises(
        TypeError, match=r"label_kind must be the kind of label that it learns: binary, multiclass, regr"
    ):
        type("Nameless", (exfm.TaskHead,), {"name": "nameless", "label_kind": "ordinal"})
    with pytest.raises(TypeError, match=r"label_kinds must name kinds of label"):
        type("Nameless", (exfm.Metric,), {"name": "nameless", "label_kinds": frozenset()})
