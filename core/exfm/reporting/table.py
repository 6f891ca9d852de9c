"""The table that a run ends with in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.text import Text

from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import (
    MISSING,
    NO_COMMON_EXAMPLE,
    STYLES,
    fixed,
    gain_share,
    interval,
    named_controls,
    percent,
    signed,
    useless,
    verdict,
)

Json = Mapping[str, Any]


def result_table(results: Json) -> FittedTable:
    """Every model and task of a results.json in one table where 100 columns are there, else in several.

    A model that is compared with a control also shows its NE gain with the 95% interval, and the gain share (the
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
        [*headings, "NE gain (95% interval)", "gain share"],
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
    return _gain_cell(gain), Text(fixed(gain_share(gain), 2))


def _gain_cell(entry: Json) -> Text:
    if entry["ne_gain_percent"] is None:  # all labels of the examples are alike
        return Text(MISSING)
    bounds = "" if entry["interval95"] is None else f" ({interval(entry['interval95'])})"
    return Text(f"{signed(entry['ne_gain_percent'])}%{bounds}", style=STYLES[verdict(entry)])


def comparison_table(results: Json) -> FittedTable | None:
    """Every pair of models that a results.json compares, in one table; None where there is none."""
    entries = results.get("comparisons", ())
    if not entries:
        return None
    figures = ("examples", "NE", "baseline NE", "NE gain (95% interval)")
    table = FittedTable("compared on the examples that both predicted", ("model", "baseline", "task"), figures)
    for entry in entries:
        gain = _gain_cell(entry) if entry["examples"] else Text(NO_COMMON_EXAMPLE)
        row = f"{entry['examples']:,}", fixed(entry["ne"]), fixed(entry["baseline_ne"]), gain
        table.add_row((entry["model"], entry["baseline"], entry["task"]), row)
    return table
