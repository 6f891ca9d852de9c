"""Merges windows into the points of a plot over time, because the NE of a few examples is chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from matplotlib.dates import date2num

from exfm.mappings import defined

Json = Mapping[str, Any]

MOST_POINTS: Final = 40
_USELESS_NE: Final = 1.1
"""Highest NE worth showing: above it a model is worse than the base rate by more than a drifting stream explains."""


@dataclass(frozen=True)
class TimelinePoint:
    """Averages neighbouring windows of a model.

    Attributes:
        day: their mean start, in matplotlib's days.
        ne, bayes_ne: means over the windows, weighted by examples; None where no window has the figure.
    """

    day: float
    ne: float | None
    bayes_ne: float | None


def timelines(series: Mapping[str, Sequence[Json]]) -> dict[str, list[TimelinePoint]]:
    """Merges each model's windows into at most 40 points, with about equally many examples in each.

    A stream may have thousands of windows. All models share the cuts, so that their points compare.
    """
    point_of_window = _points_of_windows(series.values())
    return {name: list(_points(windows, point_of_window)) for name, windows in series.items()}


def _points_of_windows(series: Iterable[Sequence[Json]]) -> dict[int, int]:
    """Numbers the point that each window is merged into; a point holds at least its share of all models' examples."""
    examples: dict[int, int] = {}
    for windows in series:
        for window in windows:
            examples[window["window"]] = examples.get(window["window"], 0) + window["examples"]
    share = sum(examples.values()) / MOST_POINTS
    points: dict[int, int] = {}
    point, held = 0, 0
    for index in sorted(examples):
        if held >= share:
            point, held = point + 1, 0
        points[index] = point
        held += examples[index]
    # The last point may have less than its share: its windows join the point before it.
    if point and held < share:
        for index, number in points.items():
            points[index] = min(number, point - 1)
    return points


def _points(windows: Sequence[Json], point_of_window: Mapping[int, int]) -> Iterator[TimelinePoint]:
    """Yields the points of a model, in order of time."""
    members_of_point: dict[int, list[Json]] = {}
    for window in windows:
        if window["examples"]:
            members_of_point.setdefault(point_of_window[window["window"]], []).append(window)
    for _, members in sorted(members_of_point.items()):
        days = [(float(date2num(datetime.fromisoformat(member["start"]))), member["examples"]) for member in members]
        day = _weighted_mean(days)
        assert day is not None
        yield TimelinePoint(
            day, _weighted_mean(_weighted(members, "ne")), _weighted_mean(_weighted(members, "bayes_ne"))
        )


def _weighted(windows: Sequence[Json], key: str) -> list[tuple[float, int]]:
    """Lists a figure of the windows that have it, with their examples."""
    return [(window[key], window["examples"]) for window in windows if window.get(key) is not None]


def _weighted_mean(weighted: Sequence[tuple[float, int]]) -> float | None:
    if not weighted:
        return None
    # Relative to the first value, so that the mean of a single value is that value to the last bit.
    first = weighted[0][0]
    total = sum(weight for _, weight in weighted)
    return first + sum((value - first) * weight for value, weight in weighted) / total


def distinct_limits(series: Sequence[Sequence[TimelinePoint]]) -> list[list[TimelinePoint]]:
    """Selects a line for each different Bayes limit: models that see other traffic have other limits."""
    lines: dict[tuple[tuple[float, float | None], ...], list[TimelinePoint]] = {}
    for points in series:
        line = [point for point in points if point.bayes_ne is not None]
        if line:
            # Equal limits are drawn once, for the model that comes last.
            lines[tuple((point.day, point.bayes_ne) for point in line)] = line
    return list(lines.values())


def settled_range(series: Sequence[Sequence[TimelinePoint]]) -> tuple[float, float] | None:
    """Finds the lowest and highest figure worth showing, because an untrained model's NE would flatten all later ones.

    The first quarter of the points does not count, nor any figure far above the NE of always predicting the base rate,
    unless the stream ends there.
    """
    settled: list[float] = []
    ceiling = _USELESS_NE
    for points in series:
        for point in points[len(points) // 4 :]:
            settled += defined((point.ne, point.bayes_ne))
        # A model that is bad to the end must not vanish from the plot.
        if points and points[-1].ne is not None:
            ceiling = max(ceiling, points[-1].ne)
    if not settled:
        return None
    return min(settled), min(max(settled), max(ceiling, min(settled)))
