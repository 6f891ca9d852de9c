"""Compares the pairs of ``compare`` in a sweep: means and intervals over the seeds of each point."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from exfm.mappings import values_at
from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import MISSING, NO_COMMON_EXAMPLE, STYLES, interval, signed, verdict
from exfm.reporting.seeds import gain_interval, spread_of_key, with_spread
from exfm.reporting.sweep_plot import point_label

Json = Mapping[str, Any]


def compared_rows(values: dict[str, str], runs: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """Yields a row for each pair and task that a group of runs compares.

    Seeds are paired: a gain is that of a seed's model over the same seed's baseline. ``runs_compared`` counts the runs
    with a gain.
    """
    entries_of_pair: dict[tuple[str, str, str], list[Json]] = {}
    for run in runs:
        for entry in run.get("comparisons", ()):  # none in results of exfm before it compared pairs
            key = (entry["model"], entry["baseline"], entry["task"])
            entries_of_pair.setdefault(key, []).append(entry)
    for (model, baseline, task), entries in entries_of_pair.items():
        gains = values_at(entries, "ne_gain_percent")
        yield {
            "values": values,
            "runs": len(entries),
            "runs_compared": len(gains) - gains.count(None),
            "examples": sum(values_at(entries, "examples")),
            "model": model,
            "baseline": baseline,
            "task": task,
            **spread_of_key("ne", entries),
            **spread_of_key("baseline_ne", entries),
            **spread_of_key("ne_gain_percent", entries),
            "interval95": gain_interval(entries),
        }


def compared_cells(summary: Json) -> Iterator[dict[str, str]]:
    """Yields the rows as text, for the terminal and for the page."""
    for row in summary["comparisons"]:
        # Examples without a gain have labels that are all alike.
        gain = MISSING if row["examples"] else NO_COMMON_EXAMPLE
        if row["ne_gain_percent"] is not None:
            gain = f"{signed(row['ne_gain_percent'])}%"
        runs = str(row["runs"])
        if row["runs_compared"] != row["runs"]:
            runs = f"{row['runs_compared']} of {row['runs']}"
        yield {
            "point": point_label(summary, row["values"]),
            "model": row["model"],
            "baseline": row["baseline"],
            "task": row["task"],
            "runs": runs,
            "ne": with_spread(row, "ne", 4),
            "baseline_ne": with_spread(row, "baseline_ne", 4),
            "gain": gain,
            "interval": "" if row["interval95"] is None else interval(row["interval95"]),
            "verdict": verdict(row),
        }


def sweep_comparison_table(summary: Json) -> FittedTable | None:
    """Builds a row for every pair that a sweep compares; None where it compares none."""
    if not summary["comparisons"]:
        return None
    figures = ("runs", "NE", "baseline NE", "NE gain (95% interval)")
    table = FittedTable("compared", ("point", "model", "baseline", "task"), figures)
    for cells in compared_cells(summary):
        gain = cells["gain"]
        if cells["interval"]:
            gain = f"{gain} ({cells['interval']})"
        row = cells["runs"], cells["ne"], cells["baseline_ne"], Text(gain, STYLES[cells["verdict"]])
        table.add_row((cells["point"], cells["model"], cells["baseline"], cells["task"]), row)
    return table
