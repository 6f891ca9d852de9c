"""Gains, their intervals, gain shares, and the matching of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.evaluation.intervals import PairedLosses, gain_share, match


def paired(model: list[float], control: list[float], groups: list[int] | None = None) -> PairedLosses:
    losses = PairedLosses()
    labels = np.arange(len(model)) % 2 == 0
    ids = np.array(range(len(model)) if groups is None else groups, np.int64)
    losses.add(ids, labels, np.array(model, float), np.array(control, float))
    return losses


def simulated(seed: int, groups: int = 400, per_group: int = 25, gain: float = 0.02) -> PairedLosses:
    """A model whose loss is ``gain`` lower in expectation, by an amount that differs from group to group."""
    rng = np.random.default_rng(seed)
    control = rng.gamma(2.0, 0.25, (groups, per_group))
    effect = gain + rng.normal(0, 0.1, (groups, 1)) + rng.normal(0, 0.1, (groups, per_group))
    losses = PairedLosses()
    ids = np.repeat(np.arange(groups), per_group)
    model = control - 0.5 * effect
    losses.add(ids, np.arange(ids.size) % 2 == 0, model.ravel(), control.ravel())
    return losses


def test_gain_by_hand() -> None:
    assert paired([0.4, 0.5], [0.5, 0.7]).gain == pytest.approx(100 * 0.3 / 1.2)


def test_a_worse_model_has_a_negative_gain() -> None:
    assert paired([0.6, 0.6], [0.5, 0.5]).gain == pytest.approx(-20)


def test_no_difference_gives_an_interval_of_nothing() -> None:
    same = list(np.random.default_rng(0).gamma(2, 0.2, 500))
    assert paired(same, same).gain == 0
    assert paired(same, same).interval95() == (0, 0)


def test_interval_holds_the_gain_and_is_the_same_every_time() -> None:
    losses = simulated(3)
    low, high = losses.interval95() or (0, 0)
    assert losses.gain is not None and low < losses.gain < high
    assert (low, high) == losses.interval95()
    assert (low, high) != losses.interval95(seed=1)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 200 streams whose true gain is 2%, 95% should say so: 190, give or take four standard deviations."""
    intervals = [simulated(seed).interval95(replicates=300) or (0, 0) for seed in range(200)]
    covered = sum(low <= 2.0 <= high for low, high in intervals)
    assert 178 <= covered < 200


def test_interval_respects_the_dependence_inside_groups() -> None:
    """The same rows, wrongly declared independent, would give an interval far too narrow."""
    rng = np.random.default_rng(5)
    effect = np.repeat(rng.normal(0, 0.1, 200), 50)
    control = np.full(effect.size, 0.5)
    grouped, ungrouped = PairedLosses(), PairedLosses()
    label = np.arange(effect.size) % 2 == 0
    grouped.add(np.repeat(np.arange(200), 50), label, control - effect, control)
    ungrouped.add(np.arange(effect.size), label, control - effect, control)
    width, too_narrow = (high - low for low, high in (grouped.interval95() or (0, 0), ungrouped.interval95() or (0, 0)))
    assert width > 4 * too_narrow


def test_stretches_add_up_to_the_whole() -> None:
    rng = np.random.default_rng(0)
    model, control, ids = rng.random(1000), rng.random(1000), rng.integers(0, 99, 1000)
    label = rng.random(1000) < 0.3
    whole, left, right = PairedLosses(), PairedLosses(), PairedLosses()
    whole.add(ids, label, model, control)
    left.add(ids[:300], label[:300], model[:300], control[:300])
    right.add(ids[300:], label[300:], model[300:], control[300:])
    merged = left + right
    assert merged.sums_K2 == pytest.approx(whole.sums_K2)
    assert (merged.examples, merged.positives) == (whole.examples, whole.positives)


def test_nothing_is_claimed_where_a_class_or_a_second_group_is_missing() -> None:
    assert PairedLosses().gain is None
    assert PairedLosses().interval95() is None
    assert paired([0.5], [0.6]).gain is None
    single_group = paired([0.5, 0.5], [0.6, 0.6], groups=[7, 7])
    assert single_group.gain is not None
    assert single_group.interval95() is None


def test_gain_share_by_hand() -> None:
    control = [1.0, 1.0]
    student, teacher = paired([0.95, 0.97], control), paired([0.9, 0.78], control)
    assert student.gain == pytest.approx(4)
    assert teacher.gain == pytest.approx(16)
    assert gain_share(student, teacher, (1.0, 20.0)) == pytest.approx(0.25)


@pytest.mark.parametrize("teacher", [[1.0, 1.0], [1.0, 1.2], []])
def test_no_ratio_to_a_teacher_that_gains_nothing(teacher: list[float]) -> None:
    losses = paired(teacher, [1.0] * len(teacher))
    assert gain_share(paired([0.9, 0.9], [1.0, 1.0]), losses, losses.interval95()) is None


@pytest.mark.parametrize("interval", [None, (-0.1, 0.14), (0.0, 0.3)])
def test_no_ratio_to_a_gain_that_may_be_nothing(interval: tuple[float, float] | None) -> None:
    student, teacher = paired([0.9, 0.9], [1.0, 1.0]), paired([0.9998, 0.9998], [1.0, 1.0])
    assert teacher.gain == pytest.approx(0.02)
    assert gain_share(student, teacher, interval) is None


ids = st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 12), unique=True, max_size=30)


@given(ids, ids, st.booleans())
def test_match_finds_common_ids_in_the_left_order(left: list[int], right: list[int], same: bool) -> None:
    right = left if same else right
    in_left, in_right = match(np.array(left, np.int64), np.array(right, np.int64))
    assert [left[i] for i in in_left] == [right[i] for i in in_right] == [each for each in left if each in set(right)]
