"""Each measure of a diagnosis against a second formulation."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from exfm.diagnosis.measures import Agreement, Movement
from exfm.diagnosis.quantiles import QuantileHistogram
from exfm.diagnosis.slices import Activity
from exfm.diagnosis.taught_measures import learning
from exfm.diagnosis.taught_rows import TaughtRows
from exfm.evaluation.metrics import log_losses, logits
from tests.diagnosis.simulated import FIRST, measured, simulate


def scored(windows: list[TaughtRows]) -> TaughtRows:
    """Concatenates the scored rows."""
    columns: dict[str, list[Any]] = {}
    for rows in windows[FIRST:]:
        for name, column in vars(rows).items():
            columns.setdefault(name, []).append(column)
    (window, *_) = columns.pop("window")
    return TaughtRows(window=window, **{name: np.concatenate(stacked) for name, stacked in columns.items()})


def gain(model: np.ndarray, baseline: np.ndarray, label: np.ndarray) -> float:
    """Computes an NE gain from mean log losses."""
    return float(100 * (1 - log_losses(model, label).mean() / log_losses(baseline, label).mean()))


def platt(probability: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Recalibrates probabilities with scikit-learn."""
    logit = logits(probability)[:, None]
    return LogisticRegression(C=1e9, tol=1e-10).fit(logit, label).predict_proba(logit)[:, 1]


def test_gain_and_headroom_are_those_of_all_rows_at_once() -> None:
    windows = simulate(teacher=lambda logit, rng: 0.7 * logit + 1, covered=0.6)
    rows, measures = scored(windows), measured(windows)
    supervised = rows.take(np.isfinite(rows.served))
    assert measures["gain"]["percent"] == pytest.approx(gain(rows.student, rows.control, rows.label))
    assert measures["headroom"]["raw"]["percent"] == pytest.approx(
        gain(supervised.served, supervised.control, supervised.label)
    )
    by_hand = gain(
        platt(supervised.served, supervised.label), platt(supervised.control, supervised.label), supervised.label
    )
    assert measures["headroom"]["recalibrated"]["percent"] == pytest.approx(by_hand, abs=2e-3)
    cost = by_hand - measures["headroom"]["raw"]["percent"]
    assert measures["headroom"]["calibration_cost_percent"] == pytest.approx(cost, abs=2e-3)
    for difference in (measures["gain"], measures["headroom"]["raw"], measures["headroom"]["recalibrated"]):
        assert difference["interval95"][0] < difference["percent"] < difference["interval95"][1]


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 1.0), (2.0, 0.0), (0.5, -1.0)])
def test_level_and_spread_of_the_teacher_change_its_raw_headroom_alone(scale: float, shift: float) -> None:
    right, wrong = measured(simulate()), measured(simulate(teacher=lambda logit, rng: scale * logit + shift))
    for name in ("percent", "interval95"):
        assert wrong["headroom"]["recalibrated"][name] == pytest.approx(
            right["headroom"]["recalibrated"][name], abs=0.02
        )
    assert wrong["headroom"]["raw"]["percent"] < right["headroom"]["raw"]["percent"] - 1
    fit, of_right = (measures["predictions"]["teacher"]["recalibration"] for measures in (wrong, right))
    assert fit["scale"] == pytest.approx(of_right["scale"] / scale, rel=0.01)
    assert fit["shift"] == pytest.approx(of_right["shift"] - shift * of_right["scale"] / scale, abs=0.02)
    assert wrong["explained_share"] == pytest.approx(right["explained_share"], rel=0.01)


def test_reach_counts_all_examples_and_those_since_the_first_supervised_window() -> None:
    windows = simulate(covered=0.5)
    for rows in windows[:4]:
        rows.served[:] = np.nan
    reach = measured(windows)["reach"]
    hits = sum(int(np.isfinite(rows.served).sum()) for rows in windows)
    total = sum(rows.label.size for rows in windows)
    assert reach["supervised_share"] == hits / total
    assert reach["supervised_share_since_first"] == hits / (total / 2)
    rows = scored(windows)
    ages = rows.age_s[np.isfinite(rows.served)]
    for name, share in (("p10", 10), ("p50", 50), ("p90", 90)):
        assert reach["age_s"][name] == pytest.approx(np.percentile(ages, share), rel=0.012)


def test_staleness_compares_the_teacher_with_what_it_served() -> None:
    windows = simulate(teacher=lambda logit, rng: logit + rng.normal(0, 1, logit.size), fresh=lambda logit, rng: logit)
    rows, reach = scored(windows), measured(windows)["reach"]
    assert reach["staleness_cost"]["percent"] == pytest.approx(gain(rows.fresh, rows.served, rows.label))
    assert reach["fresh_headroom"]["percent"] == pytest.approx(gain(rows.fresh, rows.control, rows.label))
    assert measured(simulate())["reach"]["staleness_cost"] is None


def test_slices_of_a_dimension_hold_every_example_once_and_its_gain() -> None:
    windows = simulate(covered=0.7)
    rows, slices = scored(windows), measured(windows)["slices"]
    supervised = np.isfinite(rows.served)
    activity = Counter(int(group) for window_rows in windows for group in window_rows.group)
    values = {
        "user activity": np.array([activity[int(group)] for group in rows.group]),
        "hour of day": rows.event_time_us // 3_600_000_000 % 24,
        "age of supervision": np.where(supervised, rows.age_s, np.nan),
        "teacher's confidence": np.abs(logits(rows.served)),
    }
    assert set(slices) == {*values, "stream"}
    assert sum(entry["examples"] for entry in slices["stream"]["slices"]) == rows.label.size
    for dimension, value in values.items():
        entries = slices[dimension]["slices"]
        assert sum(entry["examples"] for entry in entries) == np.isfinite(value).sum()
        assert 2 <= len(entries) <= 4
        for entry in entries:
            low, high = entry["from"] or -np.inf, entry["below"] or np.inf
            selected = rows.take((value >= low) & (value < high))
            assert entry["examples"] == selected.label.size
            by_hand = gain(selected.student, selected.control, selected.label)
            assert entry["gain"]["percent"] == pytest.approx(by_hand)


def test_agreement_and_movement_are_regressions() -> None:
    rows = scored(simulate(moved=0.4))
    agreement, movement = Agreement(), Movement()
    for half in (slice(0, 9_000), slice(9_000, None)):
        agreement.add(rows.label[half], rows.control[half], rows.served[half])
        movement.add(rows.student[half], rows.control[half], rows.served[half])
    label, teacher = rows.label - rows.control, rows.served - rows.control
    assert agreement.sign_share == np.mean(np.sign(label) == np.sign(teacher))
    assert agreement.cosine == pytest.approx(label @ teacher / np.linalg.norm(label) / np.linalg.norm(teacher))
    assert agreement.confirmed == pytest.approx(np.linalg.lstsq(teacher[:, None], label, rcond=None)[0][0])
    towards, moved = logits(rows.served) - logits(rows.control), logits(rows.student) - logits(rows.control)
    assert movement.slope == pytest.approx(np.linalg.lstsq(towards[:, None], moved, rcond=None)[0][0])
    assert movement.slope == pytest.approx(0.4, abs=0.02)


def test_labels_confirm_a_right_teacher_and_not_a_random_one() -> None:
    assert measured(simulate())["agreement"]["confirmed"] == pytest.approx(1, abs=0.1)
    noise = measured(simulate(teacher=lambda logit, rng: rng.normal(-1.5, 2, logit.size)))
    assert noise["agreement"]["confirmed"] < 0.2


@given(st.lists(st.floats(0.01, 1e8), min_size=1, max_size=300), st.floats(0, 1))
def test_quantiles_are_right_to_the_width_of_a_bin(values: list[float], share: float) -> None:
    histogram = QuantileHistogram()
    for half in (values[::2], values[1::2]):
        histogram.add(np.array(half))
    exact = sorted(values)[max(0, int(np.ceil(share * len(values))) - 1)]
    quantile = (histogram.quantiles((share,)) or [0.0])[0]
    assert exact / 1.0116 <= quantile <= exact * (1 + 1e-12)
    assert histogram.total == len(values)


def test_quarters_of_equal_values_are_none() -> None:
    histogram = QuantileHistogram()
    assert histogram.quarters() == [] and histogram.quantiles((0.5,)) is None
    histogram.add(np.full(100, 3.0))
    assert histogram.quarters() == []


def test_activity_counts_users_exactly_while_they_share_no_counter() -> None:
    group = np.random.default_rng(0).integers(-(2**60), 2**60, 50).repeat(np.arange(50))
    activity = Activity()
    activity.add(group)
    assert activity.examples_of(np.unique(group)).sum() == group.size
    assert activity.examples_of(group[-1:]).tolist() == [49]


def test_learning_weighs_windows_by_their_examples() -> None:
    nes = [1.4, 0.9, 0.8, 0.7, 0.6, None, 0.5, 0.4]
    windows = [{"window": index, "examples": 10 + index, "ne": ne} for index, ne in enumerate(nes)]
    figures = learning(windows, 1)
    assert figures["ne_worst"] == 1.4
    assert figures["ne_first"] == pytest.approx((0.9 * 11 + 0.8 * 12) / 23)
    assert figures["ne_last"] == pytest.approx((0.5 * 16 + 0.4 * 17) / 33)
    assert figures["fall_percent"] == pytest.approx(100 * (1 - figures["ne_last"] / figures["ne_first"]))
    assert learning(windows[:3], 1)["fall_percent"] is None
