"""The table that a run ends with in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from exfm.reporting.figures import MISSING, fixed, interval, named_controls, percent, signed, useless, verdict
from exfm.reporting.fitted_table import FittedTable

Json = Mapping[str, Any]

_STYLES = {"better": "green", "worse": "red", "unclear": ""}


def result_table(results: Json) -> FittedTable:
    """Every model and task of a results.json in one table where 100 columns are there, else in several.

    A model that is compared with a control also shows its NE gain with the 95% interval, and the transfer ratio (the
    first teacher's, where it has several; a dash where it is not clearly better than the control). The Bayes NE has a
    column where the stream knows it. Below the table stand the notes of the run, which models are of no use, and which
    cost lookups at serving.
    """
    gains: dict[tuple[str, str], Json] = {}
    for gain in results.get("gains", ()):
        gains.setdefault((gain["model"], gain["task"]), gain)
    rows = [
        (name, task, figures) for name, model in results["models"].items() for task, figures in model["tasks"].items()
    ]
    with_bayes = any("bayes_ne" in figures for _, _, figures in rows)
    headings = ["NE", *(["Bayes NE"] if with_bayes else []), "AUC", "GAUC", "base rate"]
    costs = [f"{name} costs lookups at serving: {', '.join(looked_up)}" for name, looked_up in _lookups(results)]
    table = FittedTable(
        results["experiment"],
        ["model", "task"],
        [*headings, "NE gain (95% interval)", "transfer"],
        [
            *(f"note: {note}" for note in results.get("notes", ())),
            *named_controls(results.get("gains", ())),
            *useless(results),
            *costs,
        ],
    )
    for name, task, figures in rows:
        bayes = [fixed(figures.get("bayes_ne"))] if with_bayes else []
        quality = [fixed(figures["ne"]), *bayes, fixed(figures["auc"]), fixed(figures["gauc"])]
        cells: list[Text | str] = [*quality, percent(figures["base_rate"]), *_gain_cells(gains.get((name, task)))]
        table.add_row((name, task), cells)
    return table


def _lookups(results: Json) -> Iterator[tuple[str, list[str]]]:
    for name, model in results["models"].items():
        if model.get("serving_lookups"):
            yield name, model["serving_lookups"]


def _gain_cells(gain: Json | None) -> tuple[Text, Text]:
    if gain is None or gain["ne_gain_percent"] is None:
        return Text(""), Text("")
    bounds = "" if gain["interval95"] is None else f" ({interval(gain['interval95'])})"
    size = Text(f"{signed(gain['ne_gain_percent'])}%{bounds}", style=_STYLES[verdict(gain)])
    ratio = gain["transfer_ratio"]
    return size, Text(MISSING if ratio is None else fixed(ratio, 2))
