"""Sums of numbers and classes: they add up, and NE is the loss over that of the best constant."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from exfm.config.training_sections import GateConfig
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.label_kinds import ClassMoments, ValueMoments, as_counters, from_counters, losses
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
from exfm.schema import Label
from exfm.supervision.late_labels import PredictedLabels
from exfm.supervision.row_files import predictions_schema
from exfm.training.gate import GateHistory, judge
from exfm.transfer.soft_label_metrics import moments_of, score_width, sum_scores

LABELS = {"regression": Label(name="y", kind="regression"), "multiclass": Label(name="y", kind="multiclass", classes=4)}


def rows(kind: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions, labels and weights, which may be 0."""
    random = np.random.default_rng(seed)
    weight = random.integers(0, 3, size).astype(np.float64)
    if kind == "regression":
        label = random.gamma(2, 10, size)
        return label + random.normal(0, 5, size), label, weight
    return random.dirichlet(np.ones(4), size), random.integers(0, 4, size), weight


def moments(kind: str, *columns: np.ndarray) -> Moments:
    return (ValueMoments if kind == "regression" else ClassMoments).from_predictions(*columns)


@settings(max_examples=15)
@given(kind=st.sampled_from(sorted(LABELS)), cut=st.integers(0, 40), seed=st.integers(0, 99))
def test_sums_add_up_and_go_through_json(kind: str, cut: int, seed: int) -> None:
    columns = rows(kind, 40, seed)
    whole = moments(kind, *columns)
    parts = Moments() + moments(kind, *(column[:cut] for column in columns))
    parts = parts + moments(kind, *(column[cut:] for column in columns))
    again = from_counters(json.loads(json.dumps(as_counters(parts))))
    assert type(again) is type(whole)
    for name in ("examples", "positives", "loss_sum", "prediction_sum", "baseline", "ne", "calibration"):
        assert getattr(again, name) == pytest.approx(getattr(whole, name), rel=1e-9), name
    prediction, label, weight = map(torch.from_numpy, columns)
    every = torch.ones(40, dtype=torch.bool)
    summed = sum_scores(prediction, label.double(), every, weight, LABELS[kind].kind)
    assert summed.shape == (score_width(LABELS[kind]),)
    counted = moments_of(summed, LABELS[kind].kind)
    assert counted.ne == pytest.approx(whole.ne, rel=1e-9) and counted.baseline == pytest.approx(whole.baseline)


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_weights_are_rows_and_no_constant_is_better_than_the_baseline(kind: str) -> None:
    prediction, label, weight = rows(kind, 60, 1)
    index = np.repeat(np.arange(60), weight.astype(int))
    weighted, repeated = moments(kind, prediction, label, weight), moments(kind, prediction[index], label[index])
    assert weighted.ne == pytest.approx(repeated.ne, rel=1e-9)
    constant: Any = np.full(index.size, label[index].mean())
    if kind == "multiclass":
        constant = np.tile(np.bincount(label[index], minlength=4) / index.size, (index.size, 1))
    assert moments(kind, constant, label[index]).ne == pytest.approx(1.0)
    worse = 0.9 * constant + (0.1 / 4 if kind == "multiclass" else 0.5)
    assert (moments(kind, worse, label[index]).ne or 0) > 1.0


def test_figures_without_a_meaning_are_none() -> None:
    alike = ValueMoments.from_predictions(np.zeros(4), np.full(4, 7.0))
    assert alike.baseline is alike.ne is None and alike.calibration == 0
    around_zero = ValueMoments.from_predictions(np.ones(4), np.array([-3.0, 3.0, -3.0, 3.01]))
    assert around_zero.calibration is None and around_zero.ne is not None
    one_class = ClassMoments.from_predictions(np.full((3, 2), 0.5), np.array([1, 1, 1]))
    assert one_class.baseline is one_class.ne is None and one_class.accuracy == 0


@pytest.mark.parametrize("kind", sorted(LABELS))
def test_gains_have_ne_and_an_interval(kind: str) -> None:
    prediction, label, _ = rows(kind, 400, 2)
    truth: Any = label if kind == "regression" else np.eye(4)[label]
    better = 0.7 * prediction + 0.3 * truth
    paired = PairedLosses()
    for chunk in (slice(0, 150), slice(150, 400)):
        new, other = (losses(kind, model[chunk], label[chunk]) for model in (better, prediction))  # type: ignore[arg-type]
        paired.add(np.arange(400)[chunk], label[chunk], new, other, None, kind, LABELS[kind].width)  # type: ignore[arg-type]
    model_ne, control_ne = paired.ne or (0, 0)
    assert model_ne == pytest.approx(moments(kind, better, label).ne, rel=1e-9)
    assert control_ne == pytest.approx(moments(kind, prediction, label).ne, rel=1e-9)
    assert paired.gain == pytest.approx(100 * (1 - model_ne / control_ne), rel=1e-9)
    low, high = paired.interval95() or (math.nan, math.nan)
    assert 0 < low < (paired.gain or 0) < high


def test_the_gate_judges_numbers_by_ne_and_by_their_mean() -> None:
    config, window = GateConfig(min_labels=50, windows=2), Window(3, 0, 86_400_000_000)
    prediction, label, _ = rows("regression", 100, 3)
    usual = {"y": moments("regression", prediction, label)}
    history = GateHistory([usual, usual], {})
    assert judge(config, window, usual, history) == {}
    noisy = {"y": moments("regression", prediction + np.tile([15, -15], 50), label)}
    assert "its NE of y is" in judge(config, window, noisy, history)["y"]
    shifted = {"y": moments("regression", 3 * prediction, label)}
    assert "its calibration of y is" in judge(config, window, shifted, history)["y"]
    few = {"y": moments("regression", 3 * prediction[:40], label[:40])}
    assert judge(config, window, few, history) == {}


def test_a_class_that_becomes_known_keeps_its_predictions() -> None:
    label = LABELS["multiclass"]
    schema = predictions_schema(["y"], [], labels={"y": label})
    columns = {"example_id": [1, 2, 3], "window": [0] * 3, "group": [1] * 3, "label_y": [1.0, None, 0.0]}
    columns |= {f"prediction_y/{number}": [0.25] * 3 for number in range(4)}
    committed = pa.table({name: pa.array(columns[name], schema.field(name).type) for name in schema.names}, schema)
    late = PredictedLabels(committed, committed)
    late.add(pa.table({"example_id": pa.array([3, 2]), "label_y": pa.array([0.0, 3.0], pa.float32())}))
    (changed,) = late.changed().to_pylist()
    assert changed["example_id"] == 2 and changed["label_y"] == 3.0 and changed["prediction_y/3"] == 0.25
