"""The table that a run ends with in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from exfm.reporting.figures import MISSING, fixed, interval, percent, signed, useless, verdict

Json = Mapping[str, Any]

_STYLES = {"better": "green", "worse": "red", "unclear": ""}


def result_table(results: Json) -> Table:
    """Every model and task of a results.json in one table that fits 100 columns.

    A model that is compared with a control also shows its NE gain with the 95% interval, and the transfer ratio (the
    first teacher's, where it has several; a dash where it is not clearly better than the control). The Bayes NE has a
    column where the stream knows it. Below the table stands which models are of no use, and which cost lookups at
    serving.
    """
    gains: dict[tuple[str, str], Json] = {}
    for gain in results.get("gains", ()):
        gains.setdefault((gain["model"], gain["task"]), gain)
    rows = [
        (name, task, figures) for name, model in results["models"].items() for task, figures in model["tasks"].items()
    ]
    with_bayes = any("bayes_ne" in figures for _, _, figures in rows)
    table = _empty_table(results, with_bayes)
    previous = None
    for name, task, figures in rows:
        bayes = [fixed(figures.get("bayes_ne"))] if with_bayes else []
        table.add_row(
            Text(name if name != previous else "", style="bold"),
            Text(task),
            fixed(figures["ne"]),
            *bayes,
            fixed(figures["auc"]),
            fixed(figures["gauc"]),
            percent(figures["base_rate"]),
            *_gain_cells(gains.get((name, task))),
        )
        previous = name
    notes = useless(results)
    notes += [f"{name} costs lookups at serving: {', '.join(looked_up)}" for name, looked_up in _lookups(results)]
    if notes:
        table.caption = Text("\n".join(notes))
    return table


def _lookups(results: Json) -> Iterator[tuple[str, list[str]]]:
    for name, model in results["models"].items():
        if model.get("serving_lookups"):
            yield name, model["serving_lookups"]


def _empty_table(results: Json, with_bayes: bool) -> Table:
    title = Text(results["experiment"])
    table = Table(title=title, title_justify="left", caption_justify="left", padding=(0, 1, 0, 0), box=None)
    table.add_column("model", overflow="fold")
    table.add_column("task", overflow="fold")
    for heading in ("NE", *(["Bayes NE"] if with_bayes else []), "AUC", "GAUC", "base rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("NE gain (95% interval)", justify="right", no_wrap=True)
    table.add_column("transfer", justify="right", no_wrap=True)
    return table


def _gain_cells(gain: Json | None) -> tuple[Text, Text]:
    if gain is None or gain["ne_gain_percent"] is None:
        return Text(""), Text("")
    bounds = "" if gain["interval95"] is None else f" ({interval(gain['interval95'])})"
    size = Text(f"{signed(gain['ne_gain_percent'])}%{bounds}", style=_STYLES[verdict(gain)])
    ratio = gain["transfer_ratio"]
    return size, Text(MISSING if ratio is None else fixed(ratio, 2))
