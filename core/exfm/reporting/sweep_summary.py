"""Compares the runs of a sweep: figures of every point, as a table and as a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from rich.text import Text

from exfm.config.run_files import REPORT_FILE
from exfm.mappings import map_values
from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import MISSING, STYLES, interval, named_controls, signed, stored_gain_share, verdict
from exfm.reporting.html import environment
from exfm.reporting.seeds import gain_interval, spread, spread_of_key, with_spread
from exfm.reporting.sweep_comparisons import compared_cells, compared_rows
from exfm.reporting.sweep_plot import draw_series, point_label, sweep_png, sweep_svg
from exfm.reporting.sweep_ratios import SEED, point_key, ratio_cells, transfer_ratios

Json = Mapping[str, Any]

SWEEP_FILE, PAGE_FILE, PLOT_FILE = "sweep.json", "sweep.html", "sweep.png"


@dataclass(frozen=True)
class PointResult:
    """Holds the outcome of a point.

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
    """Computes the content of sweep.json.

    Points that differ in their seed alone form a group. A group's figures are means over its seeds, and ``..._std``
    are sample standard deviations. The interval of its gain is Student's t over the seeds' gains; each seed's gain is
    paired, against the control of the same seed. The interval of a single run is the bootstrap over examples.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Json]] = {}
    for point in points:
        if point.results is not None:
            values = tuple((key, value) for key, value in point.values.items() if key != SEED)
            groups.setdefault(values, []).append(point.results)
    rows: list[dict[str, Any]] = []
    comparisons: list[dict[str, Any]] = []
    for group, runs in groups.items():
        rows += _rows(dict(group), runs)
        comparisons += compared_rows(dict(group), runs)
    results_of_point = {point_key(point.values): point.results for point in points}
    return {
        "experiment": experiment,
        "axes": map_values(list, axes),
        "points": list(map(_outcome, points)),
        "rows": rows,
        "comparisons": comparisons,
        "transfer_ratios": list(transfer_ratios(axes, results_of_point)),
    }


def _outcome(point: PointResult) -> dict[str, Any]:
    complete = not point.error
    return {"values": dict(point.values), "folder": point.folder, "complete": complete, "error": point.error}


def _rows(values: dict[str, str], runs: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """Yields a row for each model and task of a group of runs."""
    gains: dict[tuple[str, str], list[Json]] = {}
    for run in runs:
        gains_of_run: dict[tuple[str, str], Json] = {}
        for gain in run.get("gains", ()):
            # A model with several teachers has an entry for each; the first serves, because they differ in the gain
            # share only.
            gains_of_run.setdefault((gain["model"], gain["task"]), gain)
        for key, gain in gains_of_run.items():
            gains.setdefault(key, []).append(gain)
    for model, figures in runs[0]["models"].items():
        for task in figures["tasks"]:
            scores = [run["models"][model]["tasks"][task] for run in runs]
            compared = gains.get((model, task), [])
            yield {
                "values": values,
                "runs": len(runs),
                "model": model,
                "task": task,
                **spread_of_key("ne", scores),
                **spread_of_key("auc", scores),
                "control": compared[0]["control"] if compared else None,
                **spread_of_key("ne_gain_percent", compared),
                "interval95": gain_interval(compared),
                **spread("gain_share", list(map(stored_gain_share, compared))),
            }


def sweep_table(summary: Json) -> FittedTable:
    """Builds a row for every point, model and task of a sweep.json."""
    figures = ("runs", "NE", "AUC", "NE gain (95% interval)", "gain share")
    title = f"{summary['experiment']}: sweep"
    table = FittedTable(title, ("point", "model", "task"), figures, named_controls(summary["rows"]))
    for cells in _cells(summary):
        gain = ""
        if cells["gain"]:
            gain = f"{cells['gain']} ({cells['interval']})"
        row = cells["runs"], cells["ne"], cells["auc"], Text(gain, STYLES[cells["verdict"]]), cells["gain_share"]
        table.add_row((cells["point"], cells["model"], cells["task"]), row)
    return table


def _cells(summary: Json) -> Iterator[dict[str, str]]:
    """Yields the rows as text, for the terminal and for the page."""
    for row in summary["rows"]:
        cells = {
            "point": point_label(summary, row["values"]),
            "model": row["model"],
            "task": row["task"],
            "runs": str(row["runs"]),
            "ne": with_spread(row, "ne", 4),
            "auc": with_spread(row, "auc", 4),
            "gain": "",
            "interval": "",
            "gain_share": "",
            "verdict": verdict(row),
        }
        # The cells of a model without a control are empty, because it was never to be compared.
        if row["ne_gain_percent"] is not None:
            cells["gain"] = f"{signed(row['ne_gain_percent'])}%"
            cells["interval"] = interval(row["interval95"])
            cells["gain_share"] = with_spread(row, "gain_share", 2)
        yield cells


def render_sweep(summary: Json) -> str:
    """Renders the page for a sweep.json: styles and plot inside, no network; links lead to the points' reports."""
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
    """Renders the page's plot as a picture with its legend; None where there is nothing to draw."""
    drawn = draw_series(summary)
    if drawn is None:
        return None
    return sweep_png(drawn)
