"""Windows to the points of a plot over time: neighbours put together until chance no longer hides the course."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from matplotlib.dates import date2num

Json = Mapping[str, Any]

MOST_POINTS: Final = 40
_NO_USE_NE: Final = 1.1


@dataclass(frozen=True)
class Point:
    """Some neighbouring windows of one model.

    Attributes:
        day: their mean start, in matplotlib's days.
        ne, bayes_ne: means over the windows, weighted by examples; None where no window has the figure.
    """

    day: float
    ne: float | None
    bayes_ne: float | None


def timelines(series: Mapping[str, Sequence[Json]]) -> dict[str, list[Point]]:
    """At most 40 points for each model's windows, with about equally many examples in each.

    The NE of a window of five examples is chance, and a stream may have thousands of windows. All models share the
    cuts, so that their points compare.
    """
    part_of = _parts(series.values())
    return {name: list(_points(windows, part_of)) for name, windows in series.items()}


def _parts(series: Iterable[Sequence[Json]]) -> dict[int, int]:
    """The part that each window falls in; a part holds at least its share of all models' examples."""
    examples: dict[int, int] = {}
    for windows in series:
        for window in windows:
            examples[window["window"]] = examples.get(window["window"], 0) + window["examples"]
    share = sum(examples.values()) / MOST_POINTS
    parts, part, held = {}, 0, 0
    for index in sorted(examples):
        if held >= share:
            part, held = part + 1, 0
        parts[index] = part
        held += examples[index]
    if part and held < share:
        parts = {index: min(of, part - 1) for index, of in parts.items()}
    return parts


def _points(windows: Sequence[Json], part_of: Mapping[int, int]) -> Iterator[Point]:
    together: dict[int, list[Json]] = {}
    for window in windows:
        if window["examples"]:
            together.setdefault(part_of[window["window"]], []).append(window)
    for _, members in sorted(together.items()):
        days = [(float(date2num(datetime.fromisoformat(member["start"]))), member["examples"]) for member in members]
        day = _mean(days)
        assert day is not None
        yield Point(day, _mean(_weighed(members, "ne")), _mean(_weighed(members, "bayes_ne")))


def _weighed(windows: Sequence[Json], key: str) -> list[tuple[float, int]]:
    return [(window[key], window["examples"]) for window in windows if window.get(key) is not None]


def _mean(weighed: Sequence[tuple[float, int]]) -> float | None:
    if not weighed:
        return None
    # Relative to the first value: a single one is its own mean, to the last bit.
    first = weighed[0][0]
    total = sum(weight for _, weight in weighed)
    return first + sum((value - first) * weight for value, weight in weighed) / total


def distinct_limits(series: Sequence[Sequence[Point]]) -> list[list[Point]]:
    """One line for each different Bayes limit: models that see other traffic have other limits."""
    known = ([point for point in points if point.bayes_ne is not None] for points in series)
    by_values = {tuple((point.day, point.bayes_ne) for point in points): points for points in known if points}
    return list(by_values.values())


def settled_range(series: Sequence[Sequence[Point]]) -> tuple[float, float] | None:
    """Lowest and highest figure worth showing: an untrained model's NE would flatten all that follows.

    That is all but the first quarter, and nothing far above the NE of always predicting the base rate, unless the
    stream ends there.
    """
    settled = [
        value
        for points in series
        for point in points[len(points) // 4 :]
        for value in (point.ne, point.bayes_ne)
        if value is not None
    ]
    if not settled:
        return None
    final = [points[-1].ne for points in series if points]
    ceiling = max([_NO_USE_NE, *(value for value in final if value is not None)])
    return min(settled), min(max(settled), max(ceiling, min(settled)))
