"""The comparison of a sweep's runs: figures of every point, as a table and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from rich.text import Text

from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import MISSING, STYLES, gain_share, interval, named_controls, signed, verdict
from exfm.reporting.html import environment
from exfm.reporting.results import REPORT_FILE
from exfm.reporting.seeds import gain_interval, spread, with_spread
from exfm.reporting.sweep_comparisons import compared_cells, compared_rows
from exfm.reporting.sweep_plot import draw_series, point_label, sweep_png, sweep_svg
from exfm.reporting.sweep_ratios import SEED, point_key, ratio_cells, transfer_ratios

Json = Mapping[str, Any]

SWEEP_FILE, PAGE_FILE, PLOT_FILE = "sweep.json", "sweep.html", "sweep.png"


@dataclass(frozen=True)
class PointResult:
    """What became of one point.

    Attributes:
        values: key and value of each axis, as on the command line.
        folder: its run's folder, relative to the sweep's.
        results: its results.json; None where it failed.
        error: why it failed.
    """

    values: Mapping[str, str]
    folder: str
    results: Json | None
    error: str = ""


def summarize(experiment: str, axes: Mapping[str, Sequence[str]], points: Sequence[PointResult]) -> dict[str, Any]:
    """The content of sweep.json.

    Points that differ in their seed alone are one group. A group's figures are means over its seeds, and ``..._std``
    are sample standard deviations. The interval of its gain is Student's t over the seeds' gains; each seed's gain is
    paired, against the control of the same seed. A single run keeps its own interval, the bootstrap over examples.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Json]] = {}
    for point in points:
        if point.results is not None:
            values = tuple((key, value) for key, value in point.values.items() if key != SEED)
            groups.setdefault(values, []).append(point.results)
    return {
        "experiment": experiment,
        "axes": {key: list(values) for key, values in axes.items()},
        "points": [
            {"values": dict(point.values), "folder": point.folder, "complete": not point.error, "error": point.error}
            for point in points
        ],
        "rows": [row for values, runs in groups.items() for row in _rows(dict(values), runs)],
        "comparisons": [row for values, runs in groups.items() for row in compared_rows(dict(values), runs)],
        "transfer_ratios": list(transfer_ratios(axes, {point_key(point.values): point.results for point in points})),
    }


def _rows(values: dict[str, str], runs: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """One row for each model and task of a group of runs."""
    # Of several teachers' entries the first stands for all: they differ in the gain share only.
    gains = [{(gain["model"], gain["task"]): gain for gain in reversed(run.get("gains", ()))} for run in runs]
    for model, figures in runs[0]["models"].items():
        for task in figures["tasks"]:
            scores = [run["models"][model]["tasks"][task] for run in runs]
            compared = [of_run[model, task] for of_run in gains if (model, task) in of_run]
            yield {
                "values": values,
                "runs": len(runs),
                "model": model,
                "task": task,
                **spread("ne", [score["ne"] for score in scores]),
                **spread("auc", [score["auc"] for score in scores]),
                "control": compared[0]["control"] if compared else None,
                **spread("ne_gain_percent", [gain["ne_gain_percent"] for gain in compared]),
                "interval95": gain_interval(compared),
                **spread("gain_share", [gain_share(gain) for gain in compared]),
            }


def sweep_table(summary: Json) -> FittedTable:
    """Every point, model and task of a sweep.json in one table, or in several where it is too wide."""
    figures = ("runs", "NE", "AUC", "NE gain (95% interval)", "gain share")
    title = f"{summary['experiment']}: sweep"
    table = FittedTable(title, ("point", "model", "task"), figures, named_controls(summary["rows"]))
    for cells in _cells(summary):
        gain = Text("" if not cells["gain"] else f"{cells['gain']} ({cells['interval']})", STYLES[cells["verdict"]])
        row = cells["runs"], cells["ne"], cells["auc"], gain, cells["gain_share"]
        table.add_row((cells["point"], cells["model"], cells["task"]), row)
    return table


def _cells(summary: Json) -> Iterator[dict[str, str]]:
    """The rows in words, for the terminal and for the page."""
    for row in summary["rows"]:
        compared = row["ne_gain_percent"] is not None
        yield {
            "point": point_label(summary, row["values"]),
            "model": row["model"],
            "task": row["task"],
            "runs": str(row["runs"]),
            "ne": with_spread(row, "ne", 4),
            "auc": with_spread(row, "auc", 4),
            "gain": f"{signed(row['ne_gain_percent'])}%" if compared else "",
            "interval": interval(row["interval95"]) if compared else "",
            "gain_share": with_spread(row, "gain_share", 2) if compared else "",
            "verdict": verdict(row),
        }


def render_sweep(summary: Json) -> str:
    """The page for a sweep.json: styles and plot inside, no script, no network; links lead to the points' reports."""
    drawn = draw_series(summary)
    return (
        environment()
        .get_template("sweep.html.j2")
        .render(
            summary=summary,
            rows=list(_cells(summary)),
            drawn=drawn,
            compared=list(compared_cells(summary)),
            ratios=list(ratio_cells(summary)),
            named_controls=named_controls(summary["rows"]),
            svg=Markup(sweep_svg(drawn)) if drawn else None,
            links=[f"{quote(point['folder'])}/{REPORT_FILE}" for point in summary["points"]],
            missing=MISSING,
        )
    )


def render_png(summary: Json) -> bytes | None:
    """The page's plot as a picture, with its legend; None where there is nothing to draw."""
    drawn = draw_series(summary)
    return sweep_png(drawn) if drawn else None
