"""A sweep's plot: NE gain over the first axis that holds numbers, a series for each model and task."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exfm.reporting.plots import COLORS, GRID, INK, MARKERS, RC, SERIES, WIDTH, SeriesStyle, short, svg

Json = Mapping[str, Any]

# The page's colours in light mode; what plots are drawn in otherwise are stand-ins for the page's own.
_PAPER: Final = {INK: "#1b1f24", GRID: "#d5dae0"} | dict(
    zip(SERIES, ("#0072b2", "#d55e00", "#00442f", "#8f2f73", "#262699", "#4a3a00"), strict=True)
)
_HEIGHT: Final = 3.2
_LEGEND_LINE: Final = 0.2
_MOST_TICKS: Final = 12
_LONGEST_BESIDE: Final = 24


@dataclass
class Series:
    """One line: its points are x, y and the two ends of y's interval, or None."""

    name: str
    style: SeriesStyle
    points: list[tuple[float, float, tuple[float, float] | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """What the plot shows.

    Attributes:
        ticks: labels of the x axis, by position.
        numeric: whether x is a number, and not a choice.
    """

    title: str
    x_label: str
    y_label: str
    ticks: Mapping[str, float]
    numeric: bool
    series: tuple[Series, ...]


def point_label(summary: Json, values: Mapping[str, str]) -> str:
    """A point in few words: each key by its shortest end that no other axis shares."""
    return ", ".join(f"{_end(key, summary['axes'])}={value}" for key, value in values.items()) or "all seeds"


def _end(key: str, axes: Mapping[str, Any]) -> str:
    parts = key.split(".")
    ends = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in axes) == 1 or end == key)


def draw_series(summary: Json) -> Drawn | None:
    """Gains with their intervals; NE with its spread over seeds where nothing was compared; None without figures."""
    gains = any(row["ne_gain_percent"] is not None for row in summary["rows"])
    name = "ne_gain_percent" if gains else "ne"
    rows = [row for row in summary["rows"] if row[name] is not None]
    if not rows:
        return None
    axes = {key: values for key, values in summary["axes"].items() if key in rows[0]["values"]}
    numeric = next((key for key, values in axes.items() if all(_number(value) is not None for value in values)), None)
    key = numeric or next(iter(axes), None)
    labels = ["all seeds"] if key is None else axes[key]
    ticks = {label: _number(label) if numeric else float(place) for place, label in enumerate(labels)}
    series: dict[str, Series] = {}
    tasks = {row["task"] for row in rows}
    for row in rows:
        others = {other: value for other, value in row["values"].items() if other != key}
        named = ", ".join(filter(None, [row["model"], row["task"] if len(tasks) > 1 else "", _others(summary, others)]))
        index = len(series)
        style = SeriesStyle(index % COLORS, marker=list(MARKERS)[index % len(MARKERS)])
        of_row = series.setdefault(named, Series(named, style))
        x = ticks[row["values"][key]] if key else 0.0
        assert x is not None
        of_row.points.append((x, row[name], _bounds(row, gains)))
    return Drawn(
        title=f"{'NE gain over the control' if gains else 'NE'} by {key or 'seed'}",
        x_label=key or "",
        y_label="NE gain over the control, %" if gains else "NE, lower is better",
        ticks={label: x for label, x in ticks.items() if x is not None},
        numeric=numeric is not None,
        series=tuple(series.values()),
    )


def _others(summary: Json, values: Mapping[str, str]) -> str:
    return point_label(summary, values) if values else ""


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bounds(row: Json, gains: bool) -> tuple[float, float] | None:
    if gains:
        return None if row["interval95"] is None else (row["interval95"][0], row["interval95"][1])
    return None if row["ne_std"] is None else (row["ne"] - row["ne_std"], row["ne"] + row["ne_std"])


def sweep_svg(drawn: Drawn) -> str:
    """The plot in the page's own colours; the page has the legend."""
    with matplotlib.rc_context(RC):
        return svg(_figure(drawn, {}), drawn.title)


def sweep_png(drawn: Drawn) -> bytes:
    """The plot as a picture of its own: light, with a legend below."""
    with matplotlib.rc_context({key: _PAPER.get(value, value) for key, value in RC.items()}):  # type: ignore[call-overload]
        figure = _figure(drawn, _PAPER)
        if len(drawn.series) > 1:
            columns = 2 if all(len(series.name) <= _LONGEST_BESIDE for series in drawn.series) else 1
            figure.set_figheight(_HEIGHT + _LEGEND_LINE * math.ceil(len(drawn.series) / columns))
            figure.legend(loc="outside lower center", ncols=columns, frameon=False)
        figure.suptitle(drawn.title, fontsize=10)
        image = io.BytesIO()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from")
            figure.savefig(image, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return image.getvalue()


def _figure(drawn: Drawn, colors: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    # Beside each other where x is a choice; a number stays where it is.
    step = 0.0 if drawn.numeric else min(0.12, 0.6 / len(drawn.series))
    for number, series in enumerate(drawn.series):
        color = colors.get(SERIES[series.style.color], SERIES[series.style.color])
        shift = (number - (len(drawn.series) - 1) / 2) * step
        points = sorted(series.points)
        places = [x + shift for x, _, _ in points]
        for place, (_, _, bounds) in zip(places, points, strict=True):
            if bounds is not None:
                axes.plot([place, place], bounds, color=color, linewidth=2, solid_capstyle="butt")
        line = "-" if drawn.numeric else ""
        heights = [y for _, y, _ in points]
        axes.plot(places, heights, line, marker=series.style.marker, color=color, linewidth=1.4, label=series.name)
    _label_axes(axes, drawn, colors)
    return figure


def _label_axes(axes: Axes, drawn: Drawn, colors: Mapping[str, str]) -> None:
    places: Sequence[float] = list(drawn.ticks.values())
    if drawn.numeric and min(places) > 0 and max(places) > 10 * min(places):
        axes.set_xscale("log")
        axes.minorticks_off()
    if not drawn.numeric or len(places) <= _MOST_TICKS:
        axes.set_xticks(places, [short(label) for label in drawn.ticks])
    if not drawn.numeric:
        axes.set_xlim(-0.5, len(places) - 0.5)
    if drawn.y_label.startswith("NE gain"):
        axes.axhline(0, color=colors.get(INK, INK), linewidth=1, zorder=1)
    axes.set_xlabel(drawn.x_label)
    axes.set_ylabel(drawn.y_label)
