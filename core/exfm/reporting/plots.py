"""The report's plots: SVG to be put into a page, in the page's own colours and fonts, the same bytes every time."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from exfm.reporting.figures import count
from exfm.reporting.timeline import Point, distinct_limits, settled_range, timelines

Json = Mapping[str, Any]

COLORS: Final = 6
"""How many series colours the page defines, as ``--c0``, ``--c1``, ..."""

# The plots are drawn in these stand-ins; each becomes the page's own colour for it, so that one plot serves light and
# dark mode.
INK: Final = "#010101"
GRID: Final = "#020202"
SERIES: Final = tuple(f"#0300{index:02x}" for index in range(COLORS))
_PAGE_COLORS: Final = {INK: "currentColor", GRID: "var(--line)"} | {
    stand_in: f"var(--c{index})" for index, stand_in in enumerate(SERIES)
}
RC: Final = {
    "svg.fonttype": "none",
    "svg.hashsalt": "exfm",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
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
WIDTH: Final = 4.7
_FEW_LINES: Final = 8
_LONGEST_NAME: Final = 24


@dataclass(frozen=True)
class SeriesStyle:
    """How a model is drawn wherever it appears: the number of its colour, and the dashes of its line (none: solid)."""

    color: int
    dashes: tuple[float, ...] = ()

    @property
    def _line(self) -> tuple[int, tuple[float, ...] | None]:
        return 0, self.dashes or None


def series_styles(results: Json) -> dict[str, SeriesStyle]:
    """A style for each model: a colour for each model that is no control; a control has its model's, dashed."""
    model_of = {gain["control"]: gain["model"] for gain in results.get("gains", ())}
    heads = [name for name in results["models"] if name not in model_of]
    # After all colours are used they come again, with lines of another kind.
    kinds = ((), (8.0, 2.0), (6.0, 2.0, 1.0, 2.0))
    solid = {name: SeriesStyle(index % COLORS, kinds[index // COLORS % len(kinds)]) for index, name in enumerate(heads)}
    controls = {
        control: SeriesStyle(solid[model].color if model in solid else 0, (2.5, 2.0))
        for control, model in model_of.items()
    }
    styles = solid | controls
    return {name: styles[name] for name in results["models"]}


def gain_plot(gains: Sequence[Json], styles: Mapping[str, SeriesStyle]) -> str:
    """NE gain over the control with its interval, a row for each model and task."""
    labels = [f"{short(gain['model'])}, {short(gain['task'])}" for gain in gains]
    with matplotlib.rc_context(RC):
        figure, axes = _rows_figure(labels)
        axes.axvline(0, color=INK, linewidth=1)
        for row, gain in enumerate(gains):
            color = SERIES[styles[gain["model"]].color]
            if gain["interval95"] is not None:
                axes.plot(gain["interval95"], [row, row], color=color, linewidth=2.5, solid_capstyle="butt")
            if gain["ne_gain_percent"] is not None:
                axes.plot([gain["ne_gain_percent"]], [row], "o", color=color, markersize=6)
        axes.set_xlabel("NE gain over the control, % (95% interval)")
        return svg(figure, "NE gain of each model over its control, with 95% intervals")


def ne_plot(models: Mapping[str, Json], task: str, styles: Mapping[str, SeriesStyle]) -> str:
    """NE of one task over time, a line for each model, and the Bayes limit where it is known."""
    lines = timelines(
        {name: model["tasks"][task]["windows"] for name, model in models.items() if task in model["tasks"]}
    )
    few = len(lines) <= _FEW_LINES
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for name, points in lines.items():
            known = [(point.day, point.ne) for point in points if point.ne is not None]
            axes.plot(
                *(zip(*known, strict=True) if known else ([], [])),
                color=SERIES[styles[name].color],
                linestyle=styles[name]._line,
                linewidth=1.6 if few else 1.0,
                marker="o" if few else "",
                markersize=2.5,
            )
        for points in distinct_limits(list(lines.values())):
            limits = [point.bayes_ne for point in points if point.bayes_ne is not None]
            axes.plot([point.day for point in points], limits, color=INK, linestyle=(0, (1, 1.5)), linewidth=1.4)
        _fit(axes, list(lines.values()))
        # Between 3 and 7 ticks there is a step for every length of time; matplotlib's own bounds leave gaps.
        locator = AutoDateLocator(minticks=3, maxticks=7)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylabel("NE, lower is better")
        return svg(figure, f"NE of {task} over time, by model")


def calibration_plot(models: Mapping[str, Json], styles: Mapping[str, SeriesStyle]) -> str:
    """Predicted over real positives, a row for each model and task."""
    rows = [
        (name, task, figures["calibration"])
        for name, model in models.items()
        for task, figures in model["tasks"].items()
        if figures["calibration"] is not None
    ]
    with matplotlib.rc_context(RC):
        figure, axes = _rows_figure([f"{short(name)}, {short(task)}" for name, task, _ in rows])
        axes.axvline(1, color=INK, linewidth=1)
        for row, (name, _, calibration) in enumerate(rows):
            hollow = "none" if styles[name].dashes else SERIES[styles[name].color]
            axes.plot([calibration], [row], "o", color=SERIES[styles[name].color], markerfacecolor=hollow)
        values = [calibration for _, _, calibration in rows]
        low, high = min([0.95, *values]), max([1.05, *values])
        margin = 0.1 * (high - low)
        axes.set_xlim(max(low - margin, 0), high + margin)
        axes.set_xlabel("predicted / real positives; 1 is right")
        return svg(figure, "Calibration of each model")


def bars_plot(values: Mapping[str, float], unit: str, title: str) -> str:
    """One horizontal bar for each value, with its number."""
    with matplotlib.rc_context(RC):
        figure, axes = _rows_figure([short(name) for name in values])
        bars = axes.barh(range(len(values)), list(values.values()), color=SERIES[0], height=0.55)
        axes.bar_label(bars, labels=[count(value) for value in values.values()], padding=3)
        axes.margins(x=0.12)
        axes.set_xlabel(unit)
        return svg(figure, title)


def age_plot(histograms: Mapping[str, Json], styles: Mapping[str, SeriesStyle]) -> str:
    """How old supervision was when it was learned from, a line for each student: its share in each bin of age."""
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for student, histogram in histograms.items():
            edges, counts = histogram["edges_s"], histogram["counts"]
            used = [index for index, number in enumerate(counts) if number]
            # The outer bins are open: they are drawn as wide as their neighbours.
            bounds = [edges[0] ** 2 / edges[1], *edges, edges[-1] ** 2 / edges[-2]][used[0] : used[-1] + 2]
            shares = [100 * number / sum(counts) for number in counts[used[0] : used[-1] + 1]]
            color, line = SERIES[styles[student].color], styles[student]._line
            axes.stairs(shares, bounds, color=color, linestyle=line, linewidth=1.6, baseline=0)
        axes.set_xscale("log")
        ages = {1: "1 s", 60: "1 min", 3_600: "1 h", 86_400: "1 d", 2_592_000: "30 d", 31_536_000: "1 y"}
        axes.set_xticks(list(ages), list(ages.values()), minor=False)
        axes.minorticks_off()
        axes.set_xlabel("age of the supervision")
        axes.set_ylabel("% of the supervised examples")
        return svg(figure, "Age of supervision")


def _rows_figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, 0.75 + 0.3 * max(len(labels), 1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    return figure, axes


def _fit(axes: Axes, series: Sequence[Sequence[Point]]) -> None:
    """Limits the y axis to the part worth showing."""
    shown = settled_range(series)
    if shown is not None:
        low, high = shown
        margin = 0.08 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)


def short(name: str) -> str:
    """A name that fits beside a plot."""
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def svg(figure: Figure, title: str) -> str:
    """The figure as one <svg> element without addresses of any kind, coloured by the page."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # The browser draws the letters, not matplotlib: what its font lacks does not matter.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(
            text, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue()[text.getvalue().index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)
    svg = re.sub(r"#(?:010101|020202|0300[0-9a-f]{2})\b", lambda match: _PAGE_COLORS[match[0]], svg)
    _, head, body = re.split(r"<svg([^>]*)>", svg, maxsplit=1)
    view_box = re.search(r'viewBox="[^"]*"', head)
    assert view_box is not None
    return f'<svg {view_box[0]} role="img" aria-label="{escape(title)}">{body}'
