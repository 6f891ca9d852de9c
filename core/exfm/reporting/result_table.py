"""Renders the tables that a run prints at its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import (
    MISSING,
    NO_COMMON_EXAMPLE,
    STYLES,
    fixed,
    interval,
    named_controls,
    percent,
    signed,
    stored_gain_share,
    useless_models,
    verdict,
)

Json = Mapping[str, Any]


def result_table(results: Json) -> FittedTable:
    """Builds a row for every model and task of a results.json.

    A model that is compared with a control also shows its NE gain with the 95% interval, and the gain share (the
    first teacher's, where it has several; a dash where it is not clearly better than the control). The Bayes NE has a
    column where the stream has true probabilities; so have the mean label of numbers and the metrics of the
    experiment, where there are any. Below the table are the notes of the run, the models that are worse
    than the base rate, and the models that cost lookups at serving.
    """
    gains: dict[tuple[str, str], Json] = {}
    for gain in results.get("gains", ()):
        gains.setdefault((gain["model"], gain["task"]), gain)  # of several teachers the first
    rows = []
    with_bayes = False
    for name, model in results["models"].items():
        for task, figures in model["tasks"].items():
            rows.append((name, task, figures))
            with_bayes = with_bayes or "bayes_ne" in figures
    headings = ["NE", "AUC", "GAUC", "base rate", "NE gain (95% interval)", "gain share"]
    if with_bayes:
        headings.insert(1, "Bayes NE")
    has_means = any("mean_label" in figures for _, _, figures in rows)
    titles = list(dict.fromkeys(title for _, _, figures in rows for title in figures.get("metrics", ())))
    position = headings.index("base rate") + 1
    headings[position:position] = (["mean label"] if has_means else []) + titles
    table = FittedTable(results["experiment"], ["model", "task"], headings, _notes(results))
    for name, task, figures in rows:
        cells: list[Text | str] = [fixed(figures["ne"]), fixed(figures["auc"]), fixed(figures["gauc"])]
        if with_bayes:
            cells.insert(1, fixed(figures.get("bayes_ne")))
        cells.append(percent(figures["base_rate"]))
        if has_means:
            cells.append(fixed(figures.get("mean_label")))
        cells += [fixed(figures.get("metrics", {}).get(title)) for title in titles]
        cells += _gain_cells(gains.get((name, task)))
        table.add_row((name, task), cells)
    return table


def _notes(results: Json) -> list[str]:
    """Writes the lines below the table."""
    gains = results.get("gains", ())
    notes = [f"note: {note}" for note in results.get("notes", ())]
    notes += [*named_controls(gains), *useless_models(results)]
    for name, model in results["models"].items():
        if model.get("serving_lookups"):
            notes.append(f"{name} costs lookups at serving: {', '.join(model['serving_lookups'])}")
    return notes


def _gain_cells(gain: Json | None) -> tuple[Text, Text]:
    """Formats the gain of a model and its share of the teacher's; empty where the model has no control."""
    if gain is None or gain["ne_gain_percent"] is None:
        return Text(""), Text("")
    return _gain_cell(gain), Text(fixed(stored_gain_share(gain), 2))


def _gain_cell(entry: Json) -> Text:
    """Formats a gain with its interval, in the colour of its verdict."""
    if entry["ne_gain_percent"] is None:  # all labels of the examples are alike
        return Text(MISSING)
    bounds = ""
    if entry["interval95"] is not None:
        bounds = f" ({interval(entry['interval95'])})"
    return Text(f"{signed(entry['ne_gain_percent'])}%{bounds}", style=STYLES[verdict(entry)])


def comparison_table(results: Json) -> FittedTable | None:
    """Builds a row for every pair of models that results.json compares; None where it compares none."""
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
