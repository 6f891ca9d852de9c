"""Windows to points of a plot over time."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from matplotlib.dates import date2num

from exfm.reporting.plots import SeriesStyle, ne_plot
from exfm.reporting.timeline import MOST_POINTS, TimelinePoint, distinct_limits, settled_range, timelines

START = datetime(2000, 4, 25, 23, 5, 32, tzinfo=UTC)


def windows(examples: list[int], step: timedelta = timedelta(days=7), ne: Any = None) -> list[dict[str, Any]]:
    rng = np.random.default_rng(len(examples))
    return [
        {"window": index, "start": (START + index * step).isoformat().replace("+00:00", "Z"), "examples": count,
         "ne": float(rng.uniform(0.7, 0.9)) if ne is None else ne[index]}
        for index, count in enumerate(examples)
    ]  # fmt: skip


def test_few_equal_windows_stay_as_they_are() -> None:
    stream = windows([100] * MOST_POINTS)
    points = timelines({"vm": stream})["vm"]
    assert [point.ne for point in points] == [window["ne"] for window in stream]
    assert [point.day for point in points] == [date2num(datetime.fromisoformat(window["start"])) for window in stream]


def test_points_hold_their_share_and_weigh_windows_by_examples() -> None:
    rng = np.random.default_rng(0)
    counts = [int(count) for count in rng.integers(1, 5_000, size=1_000) ** 2 // 5_000]
    stream = windows(counts)
    points = timelines({"vm": stream})["vm"]
    assert MOST_POINTS // 2 <= len(points) <= MOST_POINTS
    # Cut again by hand: each point is the mean of the examples up to the moment it has its share.
    share = sum(counts) / MOST_POINTS
    held: list[dict[str, Any]] = []
    expected: list[list[dict[str, Any]]] = []
    for window in stream:
        if sum(member["examples"] for member in held) >= share:
            expected.append(held)
            held = []
        held.append(window)
    expected.append(held)
    if sum(member["examples"] for member in expected[-1]) < share:
        expected[-2:] = [expected[-2] + expected[-1]]
    means = [np.average([w["ne"] for w in group], weights=[w["examples"] for w in group]) for group in expected]
    assert [point.ne for point in points] == pytest.approx(means)


def test_a_tiny_last_window_joins_the_point_before_it() -> None:
    points = timelines({"vm": windows([1_000, 1_000, 5], ne=[0.8, 0.8, 0.1])})["vm"]
    assert len(points) == 2
    assert points[1].ne == pytest.approx((0.8 * 1_000 + 0.1 * 5) / 1_005)


def test_models_share_their_cuts_and_a_missing_figure_is_no_zero() -> None:
    counts = [10] * 80
    both = {"fm": windows(counts, ne=[0.8] * 80), "vm": windows(counts[:61], ne=[None, 0.9] + [None] * 59)}
    lines = timelines(both)
    assert {point.day for point in lines["vm"][:-1]} <= {point.day for point in lines["fm"]}
    assert [point.ne for point in lines["vm"]] == [0.9] + [None] * (len(lines["vm"]) - 1)


def test_a_model_without_windows_has_no_points() -> None:
    assert timelines({"vm": [], "fm": windows([0, 0])}) == {"vm": [], "fm": []}


def test_the_axis_leaves_out_an_untrained_model() -> None:
    started = [TimelinePoint(float(day), ne, 0.7) for day, ne in enumerate([9.0, 5.0, 3.0, 1.0, 0.9, 0.8, 0.75, 0.8])]
    assert settled_range([started]) == (0.7, 1.1)
    bad_to_the_end = [TimelinePoint(float(day), 2.0 - day / 10, None) for day in range(4)]
    assert settled_range([bad_to_the_end]) == (1.7, 1.7)
    assert settled_range([[], [TimelinePoint(0.0, None, None)]]) is None


def test_equal_limits_are_drawn_once() -> None:
    same, other = [TimelinePoint(0.0, 0.8, 0.7)], [TimelinePoint(0.0, 0.9, 0.6)]
    unknown = [TimelinePoint(0.0, 0.8, None)]
    assert distinct_limits([same, [TimelinePoint(0.0, 0.85, 0.7)], other, unknown]) == [
        [TimelinePoint(0.0, 0.85, 0.7)],
        other,
    ]


@pytest.mark.parametrize("seconds", [59, 200, 3_000, 9_000, 50_000, 230_000, 900_000, 8e6, 1e7, 2.5e7, 9e7, 1e9])
def test_the_axis_of_time_suits_any_length(seconds: float) -> None:
    """From a minute to decades, with 2 to 8 labels and without a word from matplotlib."""
    stream = windows([10] * 5, timedelta(seconds=seconds / 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = ne_plot({"vm": {"tasks": {"click": {"windows": stream}}}}, "click", {"vm": SeriesStyle(0)})
    # Labels below the axis are centred, as is the y axis's title; those beside it end at the axis.
    assert 2 <= svg.count("text-anchor: middle") - 1 <= 8


def test_a_single_window_is_drawn() -> None:
    assert "<svg" in ne_plot({"vm": {"tasks": {"click": {"windows": windows([10])}}}}, "click", {"vm": SeriesStyle(0)})
