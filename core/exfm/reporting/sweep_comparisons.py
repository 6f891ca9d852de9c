"""The pairs of ``compare`` in a sweep: means and intervals over the seeds of each point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import MISSING, NO_COMMON_EXAMPLE, STYLES, interval, signed, verdict
from exfm.reporting.seeds import gain_interval, spread, with_spread
from exfm.reporting.sweep_plot import point_label

Json = Mapping[str, Any]


def compared_rows(values: dict[str, str], runs: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """Yields a row for each pair and task that a group of runs compares.

    Seeds are paired: a gain is that of one seed's model over the same seed's baseline. ``runs_compared`` counts
    the runs that have a gain.
    """
    entries: dict[tuple[str, str, str], list[Json]] = {}
    for run in runs:
        for entry in run.get("comparisons", ()):  # none in results of exfm before it compared pairs
            entries.setdefault((entry["model"], entry["baseline"], entry["task"]), []).append(entry)
    for (model, baseline, task), of_pair in entries.items():
        yield {
            "values": values,
            "runs": len(of_pair),
            "runs_compared": sum(entry["ne_gain_percent"] is not None for entry in of_pair),
            "examples": sum(entry["examples"] for entry in of_pair),
            "model": model,
            "baseline": baseline,
            "task": task,
            **spread("ne", [entry["ne"] for entry in of_pair]),
            **spread("baseline_ne", [entry["baseline_ne"] for entry in of_pair]),
            **spread("ne_gain_percent", [entry["ne_gain_percent"] for entry in of_pair]),
            "interval95": gain_interval(of_pair),
        }


def compared_cells(summary: Json) -> Iterator[dict[str, str]]:
    """Yields the rows in words, for the terminal and for the page."""
    for row in summary["comparisons"]:
        gain = MISSING if row["examples"] else NO_COMMON_EXAMPLE
        if row["ne_gain_percent"] is not None:
            gain = f"{signed(row['ne_gain_percent'])}%"
        yield {
            "point": point_label(summary, row["values"]),
            "model": row["model"],
            "baseline": row["baseline"],
            "task": row["task"],
            "runs": str(row["runs"])
            if row["runs_compared"] == row["runs"]
            else f"{row['runs_compared']} of {row['runs']}",
            "ne": with_spread(row, "ne", 4),
            "baseline_ne": with_spread(row, "baseline_ne", 4),
            "gain": gain,
            "interval": "" if row["interval95"] is None else interval(row["interval95"]),
            "verdict": verdict(row),
        }


def sweep_comparison_table(summary: Json) -> FittedTable | None:
    """Every pair that a sweep compares, in one table; None where there is none."""
    if not summary["comparisons"]:
        return None
    figures = ("runs", "NE", "baseline NE", "NE gain (95% interval)")
    table = FittedTable("compared", ("point", "model", "baseline", "task"), figures)
    for cells in compared_cells(summary):
        gain = f"{cells['gain']} ({cells['interval']})" if cells["interval"] else cells["gain"]
        row = cells["runs"], cells["ne"], cells["baseline_ne"], Text(gain, STYLES[cells["verdict"]])
        table.add_row((cells["point"], cells["model"], cells["baseline"], cells["task"]), row)
    return table
