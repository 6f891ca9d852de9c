"""`exfm compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exfm.cli.context import console, print_json

if TYPE_CHECKING:
    from rich.table import Table

_MOST_COLUMNS = 6
"""Runs that a table has a column for: more would not fit on a screen, and are listed below each other."""


def command(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Folders of finished runs, any fsspec URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the figures of every window.")] = False,
    paired: Annotated[
        bool, typer.Option("--paired/--unpaired", help="Compare predictions of the same examples, which reads them.")
    ] = True,
) -> None:
    """Compares runs with the first: differences of config, gains on the same examples with intervals, figures."""
    from exfm.comparison.compare import compare

    comparison = compare(runs, paired=paired)
    if as_json:
        print_json({**comparison.as_dict(), "curves": comparison.curves()})
        return
    labels = [run["label"] for run in comparison.runs]
    parts = [_differences(comparison.differences, labels), "", _figures(comparison.figures)]
    if paired:
        parts += ["", _gains(comparison.gains, labels[0])]
    screen = console(140)
    for shown in parts:
        screen.print(shown)


def _table(title: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _differences(differences: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Table | str:
    """Builds a table of the keys that differ: a column for each run, or a row for each key of each run."""
    from rich.markup import escape

    if not differences:
        return "configs: no difference"
    if len(labels) > _MOST_COLUMNS:
        table = _table("configs", "key", "run", "value")
        for entry in differences:
            for position, label in enumerate(labels):
                table.add_row("" if position else escape(entry["key"]), escape(label), escape(_value(entry, label)))
        return table
    table = _table("configs", "key", *map(escape, labels))
    for entry in differences:
        table.add_row(*(escape(text) for text in (entry["key"], *(_value(entry, label) for label in labels))))
    return table


def _value(entry: Mapping[str, Any], label: str) -> str:
    return str(entry["values"][label]) if label in entry["values"] else "-"


def _figures(figures: Sequence[Mapping[str, Any]]) -> Table:
    from rich.markup import escape

    from exfm.reporting.formatting import fixed

    table = _table("figures", "run", "model", "task", "NE", "AUC", "calibration", "NE gain over the control, %")
    for entry in figures:
        names = (escape(entry["run"]), entry["model"], entry["task"])
        bounds = None if entry.get("gain_low") is None else (entry["gain_low"], entry["gain_high"])
        gain = _gain(entry["ne_gain_percent"], bounds) if "control" in entry else "-"
        table.add_row(*names, fixed(entry["ne"]), fixed(entry.get("auc")), fixed(entry["calibration"], 3), gain)
    return table


def _gains(gains: Sequence[Mapping[str, Any]], baseline: str) -> Table | str:
    from rich.markup import escape

    from exfm.reporting.formatting import fixed

    if not gains:
        return f"gains over {baseline}: no model and task that two of these runs predict"
    title = f"gains over {escape(baseline)} on the same examples"
    table = _table(title, "run", "model", "task", "examples", "NE", f"NE of {escape(baseline)}", "NE gain, %")
    for entry in gains:
        gain = entry["note"] or _gain(entry["ne_gain_percent"], entry["interval95"])
        names = (escape(entry["run"]), entry["model"], entry["task"], f"{entry['examples']:,}")
        table.add_row(*names, fixed(entry["ne"]), fixed(entry["baseline_ne"]), gain)
    return table


def _gain(percent: float | None, bounds: Any) -> str:
    from exfm.reporting.formatting import interval, signed

    return f"{signed(percent)} ({interval(bounds)})"
