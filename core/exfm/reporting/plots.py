"""Draws the report's plots as SVG in the colours and fonts of the page, with the same bytes every time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from exfm.config.run_files import CONTROL_SUFFIX
from exfm.reporting.formatting import count, fixed, is_control
from exfm.reporting.timeline import TimelinePoint, distinct_limits, settled_range, timelines

Json = Mapping[str, Any]

COLORS: Final = 6
"""Number of series colours that the page defines, as ``--c0``, ``--c1``, ..."""

# The plots are drawn in these placeholders. Each is replaced by a colour variable of the page, so that the same plot
# serves light and dark mode.
INK: Final = "#010101"
GRID: Final = "#020202"
PAGE: Final = "#030303"
SERIES: Final = tuple(f"#0400{index:02x}" for index in range(COLORS))
_PAGE_COLORS: Final = {INK: "currentColor", GRID: "var(--line)", PAGE: "var(--page)"} | {
    placeholder: f"var(--c{index})" for index, placeholder in enumerate(SERIES)
}
RC: Final = {
    "svg.fonttype": "none",  # text stays text, for the page's fonts, for screen readers and for searching
    "svg.hashsalt": "exfm",  # ids in the SVG are random otherwise
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}
# About a phone's width: text stays readable there, and on a wide screen plots stand side by side.
WIDTH: Final = 4.4
# A line differs from the others in its marker and its dashes too, because some readers do not see colours.
# Each marker as matplotlib knows it, and as a path around (17, 6) for the page's legend.
MARKERS: Final = {
    "o": "M13 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "s": "M13.4 2.4h7.2v7.2h-7.2z",
    "^": "M17 1.2l4.6 8.4h-9.2z",
    "D": "M17 1l5 5-5 5-5-5z",
    "v": "M17 10.8l4.6-8.4h-9.2z",
    "P": "M15.4 1.6h3.2v2.8h2.8v3.2h-2.8v2.8h-3.2v-2.8h-2.8v-3.2h2.8z",
}
_FEW_LINES: Final = 8  # above which markers would hide the lines
_AGES: Final = {
    1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3_600: "1 h", 21_600: "6 h",
    86_400: "1 d", 604_800: "7 d", 2_592_000: "30 d", 31_536_000: "1 y",
}  # fmt: skip
_LONGEST_NAME: Final = 24


@dataclass(frozen=True)
class SeriesStyle:
    """Styles a model the same wherever it appears.

    Attributes:
        color: the number of its colour.
        dashes: lengths of its line's dashes and gaps; solid where empty.
        marker: its shape.
        hollow: whether the marker is an outline, as a control's is.
    """

    color: int
    dashes: tuple[float, ...] = ()
    marker: str = "o"
    hollow: bool = False

    @property
    def line(self) -> dict[str, Any]:
        """Colour and dashes, as matplotlib's arguments."""
        return {"color": SERIES[self.color], "linestyle": (0, self.dashes or None)}

    @property
    def point(self) -> dict[str, Any]:
        """The marker, as matplotlib's arguments."""
        color = SERIES[self.color]
        # A hollow marker is filled with the page's colour, so that the line does not show through.
        face = PAGE if self.hollow else color
        return {"marker": self.marker, "markerfacecolor": face, "markeredgecolor": color}

    @property
    def marker_path(self) -> str:
        """The marker's outline around (17, 6), for the page's legend."""
        return MARKERS[self.marker]


def series_styles(results: Json) -> dict[str, SeriesStyle]:
    """Chooses a colour and a marker for each model; NAME.control has those of NAME, in outline."""
    # When all colours are used they repeat, with other dashes.
    dashes = ((), (8.0, 2.0), (6.0, 2.0, 1.0, 2.0))
    markers = list(MARKERS)
    models = [name for name in results["models"] if not is_control(name)]
    style_of_model: dict[str, SeriesStyle] = {}
    for index, name in enumerate(models):
        repetition = index // COLORS % len(dashes)
        style_of_model[name] = SeriesStyle(index % COLORS, dashes[repetition], markers[index % len(markers)])
    styles: dict[str, SeriesStyle] = {}
    for name in results["models"]:
        # Results that were filtered may have a control without its model.
        style = style_of_model.get(name.removesuffix(CONTROL_SUFFIX), SeriesStyle(0))
        if is_control(name):
            style = replace(style, dashes=(2.5, 2.0), hollow=True)
        styles[name] = style
    return styles


def ne_plot(models: Mapping[str, Json], task: str, styles: Mapping[str, SeriesStyle]) -> str:
    """Draws the NE of a task over time: a line for each model, and the Bayes limit of a simulated stream."""
    windows = {name: model["tasks"][task]["windows"] for name, model in models.items() if task in model["tasks"]}
    lines = timelines(windows)
    line_width, with_markers = 1.5, True
    if len(lines) > _FEW_LINES:
        line_width, with_markers = 1.0, False
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for name, points in lines.items():
            days, nes = [], []
            for point in points:
                if point.ne is not None:
                    days.append(point.day)
                    nes.append(point.ne)
            look = styles[name].line
            if with_markers:
                look |= styles[name].point
            axes.plot(days, nes, **look, linewidth=line_width, markersize=4)
        for points in distinct_limits(list(lines.values())):
            days = [point.day for point in points]
            limits = [point.bayes_ne for point in points if point.bayes_ne is not None]
            axes.plot(days, limits, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.4)
        _limit_y_axis(axes, list(lines.values()))
        # Between 3 and 7 ticks there is a step for every length of time; matplotlib's own bounds leave gaps.
        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylabel("NE, lower is better")
        ends = (f"{name} {fixed(points[-1].ne)}" for name, points in lines.items() if points)
        return svg(figure, f"NE of {task} over time, by model. At the end: {', '.join(ends)}.")


def calibration_plot(models: Mapping[str, Json], styles: Mapping[str, SeriesStyle]) -> str:
    """Draws predicted over real positives, a row for each model and task."""
    rows = []
    for name, model in models.items():
        for task, figures in model["tasks"].items():
            if figures["calibration"] is not None:
                rows.append((name, task, figures["calibration"]))
    with matplotlib.rc_context(RC):
        figure, axes = _rows_figure([f"{short(name)}, {short(task)}" for name, task, _ in rows])
        axes.axvline(1, color=INK, linewidth=1)
        for row, (name, _, calibration) in enumerate(rows):
            axes.plot([calibration], [row], **styles[name].line, **styles[name].point, markersize=6.5)
        values = [calibration for _, _, calibration in rows]
        # At least 5% to both sides, so that good calibrations do not look different; never below zero.
        low, high = min([0.95, *values]), max([1.05, *values])
        margin = 0.1 * (high - low)
        axes.set_xlim(max(low - margin, 0), high + margin)
        axes.set_xlabel("predicted / real positives; 1 is right")
        words = [f"{name} on {task} {fixed(calibration, 3)}" for name, task, calibration in rows]
        return svg(figure, f"Calibration, predicted over real positives: {', '.join(words)}.")


def bars_plot(values: Mapping[str, float], unit: str, title: str) -> str:
    """Draws a horizontal bar for each value, with its number."""
    with matplotlib.rc_context(RC):
        figure, axes = _rows_figure(list(map(short, values)))
        bars = axes.barh(range(len(values)), list(values.values()), color=SERIES[0], height=0.55)
        axes.bar_label(bars, labels=list(map(count, values.values())), padding=3)
        axes.margins(x=0.12)  # room for the numbers
        axes.set_xlabel(unit)
        words = [f"{name} {count(value)}" for name, value in values.items()]
        return svg(figure, f"{title}, {unit}: {', '.join(words)}.")


def age_plot(histograms: Mapping[str, Json], styles: Mapping[str, SeriesStyle]) -> str:
    """Draws the age of supervision at training, a line for each student: its share in each bin of age."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for student, histogram in histograms.items():
            edges, counts = histogram["edges_s"], histogram["counts"]
            used = [index for index, number in enumerate(counts) if number]
            # The outer bins are open: they are drawn as wide as their neighbours, on an axis of logarithms.
            bounds = [edges[0] ** 2 / edges[1], *edges, edges[-1] ** 2 / edges[-2]]
            # Empty bins at both ends are left out; a bin has a bound more than counts.
            bounds = bounds[used[0] : used[-1] + 2]
            shares = [100 * number / sum(counts) for number in counts[used[0] : used[-1] + 1]]
            axes.stairs(shares, bounds, **styles[student].line, linewidth=1.6, baseline=0)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ages = {age: label for age, label in _AGES.items() if low <= age <= high}
        axes.set_xticks(list(ages), list(ages.values()), minor=False)
        axes.minorticks_off()
        axes.set_xlabel("age of the supervision")
        axes.set_ylabel("% of the supervised examples")
        return svg(figure, "Age of supervision")


def _rows_figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Builds a figure with a labelled row for each label, as high as they need."""
    figure = Figure(figsize=(WIDTH, 0.75 + 0.3 * max(len(labels), 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # downwards: the first row on top
    axes.grid(visible=False, axis="y")
    return figure, axes


def _limit_y_axis(axes: Axes, series: Sequence[Sequence[TimelinePoint]]) -> None:
    """Limits the y axis to the settled range of the series."""
    shown = settled_range(series)
    if shown is not None:
        low, high = shown
        margin = 0.08 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)


def short(name: str) -> str:
    """Shortens a name that does not fit beside a plot."""
    if len(name) <= _LONGEST_NAME:
        return name
    return name[: _LONGEST_NAME - 1] + "…"


def svg(figure: Figure, title: str) -> str:
    """Renders a figure as an <svg> element without addresses of any kind, coloured by the page."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the letters, not matplotlib: letters that matplotlib's font lacks do not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        # The date would change the bytes, and the other metadata are addresses.
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Ids of groups repeat from plot to plot, and a page may have an id once only.
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"#(?:010101|020202|030303|0400[0-9a-f]{2})\b", lambda match: _PAGE_COLORS[match[0]], svg)
    # Without width and height the page's styles decide on the size.
    _, head, body = re.split(r"<svg([^>]*)>", svg, maxsplit=1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    return f'<svg {view_box[0]} role="img" aria-label="{escape(title)}">{body}'
