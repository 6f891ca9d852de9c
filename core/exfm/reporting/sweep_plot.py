"""Draws a sweep: NE gain over the first axis that holds numbers, a series for each model and task."""

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

from exfm.mappings import records_with, values_at, without
from exfm.reporting.plots import COLORS, GRID, INK, MARKERS, RC, SERIES, WIDTH, SeriesStyle, short, svg

Json = Mapping[str, Any]

# A picture has no page whose colours it could take: it has the page's colours in light mode.
_PAPER: Final = {INK: "#1b1f24", GRID: "#d5dae0"} | dict(
    zip(SERIES, ("#0072b2", "#d55e00", "#00442f", "#8f2f73", "#262699", "#4a3a00"), strict=True)
)
_HEIGHT: Final = 3.2
_LEGEND_LINE: Final = 0.2
_MOST_TICKS: Final = 12  # above which labels of numbers would overlap; matplotlib chooses fewer
_LONGEST_BESIDE: Final = 24  # characters of a name in a legend of two columns


@dataclass
class Series:
    """Holds a line; its points are x, y and the two ends of y's interval, or None."""

    name: str
    style: SeriesStyle
    points: list[tuple[float, float, tuple[float, float] | None]] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """Holds the content of the plot.

    Attributes:
        ticks: positions on the x axis, by label.
        numeric: whether x is a number, and not a choice.
    """

    title: str
    x_label: str
    y_label: str
    ticks: Mapping[str, float]
    numeric: bool
    series: tuple[Series, ...]


def point_label(summary: Json, values: Mapping[str, str]) -> str:
    """Names a point in few words: each key by its shortest ending that no other axis shares."""
    words = [f"{_short_key(key, summary['axes'])}={value}" for key, value in values.items()]
    return ", ".join(words) or "all seeds"


def _short_key(key: str, axes: Mapping[str, Any]) -> str:
    """Finds the shortest ending of a key path that no other axis shares, or else the whole path."""
    names = key.split(".")
    for length in range(1, len(names)):
        ending = ".".join(names[-length:])
        sharing = [axis for axis in axes if f".{axis}".endswith(f".{ending}")]
        if len(sharing) == 1:
            return ending
    return key


def draw_series(summary: Json) -> Drawn | None:
    """Builds series of gains with their intervals, or of NE with its spread over seeds where no model has a gain.

    Returns:
        None where no row has a figure.
    """
    gains = bool(records_with(summary["rows"], "ne_gain_percent"))
    name, title, y_label = "ne", "NE", "NE, lower is better"
    if gains:
        name, title, y_label = "ne_gain_percent", "NE gain over the control", "NE gain over the control, %"
    rows = records_with(summary["rows"], name)
    if not rows:
        return None
    # Without the axis of seeds, over which rows are averaged.
    axes = {key: values for key, values in summary["axes"].items() if key in rows[0]["values"]}
    key, ticks = _x_axis(axes)
    series: dict[str, Series] = {}
    with_task = len(set(values_at(rows, "task"))) > 1
    for row in rows:
        label = _series_label(summary, row, key, with_task)
        index = len(series)
        style = SeriesStyle(index % COLORS, marker=list(MARKERS)[index % len(MARKERS)])
        line = series.setdefault(label, Series(label, style))
        x = ticks[row["values"][key]] if key else 0.0
        line.points.append((x, row[name], _bounds(row, gains)))
    return Drawn(
        title=f"{title} by {key or 'seed'}",
        x_label=key or "",
        y_label=y_label,
        ticks=ticks,
        numeric=key is not None and _numbers(axes[key]) is not None,
        series=tuple(series.values()),
    )


def _x_axis(axes: Mapping[str, Sequence[str]]) -> tuple[str | None, dict[str, float]]:
    """Chooses the first axis that holds numbers, else the first, and the position of each value."""
    for key, values in axes.items():
        numbers = _numbers(values)
        if numbers is not None:
            return key, dict(zip(values, numbers, strict=True))
    for key, values in axes.items():
        return key, {value: float(position) for position, value in enumerate(values)}
    return None, {"all seeds": 0.0}


def _series_label(summary: Json, row: Json, key: str | None, with_task: bool) -> str:
    """Names the series of a row: its model, its task where there are several, and its values on the other axes."""
    words = [row["model"]]
    if with_task:
        words.append(row["task"])
    others = without(row["values"], key)
    if others:
        words.append(point_label(summary, others))
    return ", ".join(words)


def _numbers(texts: Sequence[str]) -> list[float] | None:
    """Parses all values of an axis; None where any of them is no number."""
    numbers = []
    for text in texts:
        number = _number(text)
        if number is None:
            return None
        numbers.append(number)
    return numbers


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    # "nan" and "inf" are words that float() accepts.
    if not math.isfinite(number):
        return None
    return number


def _bounds(row: Json, gains: bool) -> tuple[float, float] | None:
    """Computes the ends of a row's interval: the gain's 95% interval, or a standard deviation around the NE."""
    if gains and row["interval95"] is not None:
        return row["interval95"][0], row["interval95"][1]
    if not gains and row["ne_std"] is not None:
        return row["ne"] - row["ne_std"], row["ne"] + row["ne_std"]
    return None


def sweep_svg(drawn: Drawn) -> str:
    """Draws the plot in the page's colours, without a legend, because the page has it."""
    with matplotlib.rc_context(RC):
        return svg(_figure(drawn, {}), drawn.title)


def sweep_png(drawn: Drawn) -> bytes:
    """Draws the plot as a picture with light colours and a legend below."""
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
            # Without the software's version, so that equal summaries give equal bytes.
            figure.savefig(image, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return image.getvalue()


def _figure(drawn: Drawn, colors: Mapping[str, str]) -> Figure:
    figure = Figure(figsize=(WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    # Series are side by side where x is a choice; a number is drawn at its value.
    step = 0.0 if drawn.numeric else min(0.12, 0.6 / len(drawn.series))
    for number, series in enumerate(drawn.series):
        color = colors.get(SERIES[series.style.color], SERIES[series.style.color])
        shift = (number - (len(drawn.series) - 1) / 2) * step
        points = sorted(series.points)
        positions = [x + shift for x, _, _ in points]
        for position, (_, _, bounds) in zip(positions, points, strict=True):
            if bounds is not None:
                axes.plot([position, position], bounds, color=color, linewidth=2, solid_capstyle="butt")
        # A line between choices would suggest values between them.
        line = "-" if drawn.numeric else ""
        heights = [y for _, y, _ in points]
        axes.plot(positions, heights, line, marker=series.style.marker, color=color, linewidth=1.4, label=series.name)
    _label_axes(axes, drawn, colors)
    return figure


def _label_axes(axes: Axes, drawn: Drawn, colors: Mapping[str, str]) -> None:
    """Labels both axes, and draws zero where the y axis has gains."""
    positions: Sequence[float] = list(drawn.ticks.values())
    # Numbers over more than a decade are usually chosen at equal ratios, such as learning rates.
    if drawn.numeric and min(positions) > 0 and max(positions) > 10 * min(positions):
        axes.set_xscale("log")
        axes.minorticks_off()
    if not drawn.numeric or len(positions) <= _MOST_TICKS:
        axes.set_xticks(positions, list(map(short, drawn.ticks)))
    if not drawn.numeric:
        axes.set_xlim(-0.5, len(positions) - 0.5)
    if drawn.y_label.startswith("NE gain"):
        axes.axhline(0, color=colors.get(INK, INK), linewidth=1, zorder=1)
    axes.set_xlabel(drawn.x_label)
    axes.set_ylabel(drawn.y_label)
