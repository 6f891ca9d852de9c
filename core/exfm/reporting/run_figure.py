"""Draws figures for Python users: NE over time and gains with their intervals, in matplotlib's own colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from exfm.reporting.timeline import distinct_limits, settled_range, timelines

Json = Mapping[str, Any]

_PANEL_WIDTH, _PANEL_HEIGHT = 5.2, 3.2  # inches: two panels fill the width of a notebook
_ROW_HEIGHT = 0.28
_MOST_NAMED = 12
"""Lines up to which a panel has a legend: a longer legend hides the lines."""


class ShownFigure(Figure):
    """A figure that a notebook shows, although pyplot does not know it."""

    def _repr_png_(self) -> bytes:
        picture = io.BytesIO()
        self.savefig(picture, format="png")
        return picture.getvalue()


def new_figure(panels: int, rows: int = 0) -> tuple[Figure, list[Axes]]:
    """Builds a figure of panels side by side.

    Args:
        rows: the rows of gains in the panel that has most of them, because it must be high enough.
    """
    height = max(_PANEL_HEIGHT, 1.0 + _ROW_HEIGHT * rows)
    figure = ShownFigure(figsize=(_PANEL_WIDTH * panels, height), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)
    return figure, list(axes[0])


def draw_ne(axes: Axes, windows: Mapping[str, Sequence[Json]], title: str) -> None:
    """Draws NE over time, a line for each name, and the Bayes limits of a simulated stream.

    Args:
        windows: entries of ``windows`` in results.json, by name.
    """
    lines = timelines(windows)
    for name, points in lines.items():
        shown = [(point.day, point.ne) for point in points if point.ne is not None]
        axes.plot([day for day, _ in shown], [ne for _, ne in shown], label=name, marker=".")
    for points in distinct_limits(list(lines.values())):
        days = [point.day for point in points if point.bayes_ne is not None]
        limits = [point.bayes_ne for point in points if point.bayes_ne is not None]
        axes.plot(days, limits, color="black", linestyle=":", label="Bayes NE")
    limits_y = settled_range(list(lines.values()))
    if limits_y is not None:
        low, high = limits_y
        margin = 0.08 * (high - low) or 0.01
        axes.set_ylim(low - margin, high + margin)
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_ylabel("NE, lower is better")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if 0 < len(axes.get_lines()) <= _MOST_NAMED:
        axes.legend(fontsize="small")


def draw_gains(axes: Axes, gains: Sequence[tuple[str, Json]], label: str) -> None:
    """Draws a row for each gain, with its 95% interval.

    Args:
        gains: name and entry, with ``ne_gain_percent`` and ``interval95``.
        label: of the horizontal axis.
    """
    axes.axvline(0, color="black", linewidth=1)
    for row, (_, gain) in enumerate(gains):
        if gain["interval95"] is not None:
            axes.plot(gain["interval95"], [row, row], color="tab:blue", linewidth=2, solid_capstyle="butt")
        axes.plot([gain["ne_gain_percent"]], [row], color="tab:blue", marker="o")
    axes.set_yticks(range(len(gains)), [name for name, _ in gains])
    axes.set_ylim(len(gains) - 0.4, -0.6)  # downwards: the first row on top
    axes.set_xlabel(label)
    axes.grid(alpha=0.3, axis="x")
