"""Renders the table of `exfm diagnose`, and reads the diagnosis that belongs to a run's results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from exfm.config.run_files import DIAGNOSIS_FILE
from exfm.diagnosis.diagnose import digest
from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import MISSING, fixed, interval, percent, signed
from exfm.storage.workspace import Workspace

Json = Mapping[str, Any]

_FIGURES = ("verdict", "NE gain (95% interval)", "headroom (95% interval)", "gain share", "supervised", "confirmed")


def diagnosis_table(diagnosis: Json) -> FittedTable:
    """Builds a row of verdict and main figures for each student, task and teacher, with settings to try below."""
    notes = []
    for entry in diagnosis["students"]:
        notes.append(f"\n{entry['model']}, {entry['task']}, taught by {entry['teacher']}: {entry['verdict']['words']}")
        if entry["verdict"]["also"]:
            notes.append(f"  also: {', '.join(entry['verdict']['also'])}")
        notes += [f"  try {setting}" for setting in entry["verdict"]["settings"]]
    left_out = [f"left out: {reason}" for reason in diagnosis["left_out"]]
    # An empty table alone would read as a failure.
    if not diagnosis["students"]:
        left_out.insert(
            0,
            "no model of this run has a teacher of a binary label and a control; control: true under a model adds one",
        )
    title = f"{diagnosis['experiment']}: why transfer pays or does not"
    table = FittedTable(title, ["student", "task", "teacher"], _FIGURES, [*notes, "", *left_out])
    for entry in diagnosis["students"]:
        cause = entry["verdict"]["cause"]
        cells: list[Text | str] = [
            Text(cause, style="green" if cause == "pays" else ""),
            _difference_cell(entry["gain"]),
            _difference_cell(entry["headroom"]["recalibrated"]),
            fixed(entry["gain_share"], 2),
            percent(entry["reach"]["supervised_share"]),
            fixed(entry["agreement"]["confirmed"], 2),
        ]
        table.add_row((entry["model"], entry["task"], entry["teacher"]), cells)
    return table


def _difference_cell(figure: Json | None) -> str:
    """Formats a difference in percent with its interval."""
    if figure is None or figure["percent"] is None:
        return MISSING
    bounds = ""
    if figure["interval95"] is not None:
        bounds = f" ({interval(figure['interval95'])})"
    return f"{signed(figure['percent'])}%{bounds}"


def kept_diagnosis(workspace: Workspace, results: Json) -> Json | None:
    """Reads a run's diagnosis; None where the folder has none, or where it belongs to other results."""
    if not workspace.exists(DIAGNOSIS_FILE):
        return None
    diagnosis: Json = workspace.read_json(DIAGNOSIS_FILE)
    # A run that went on has other figures, which an old verdict does not describe.
    if diagnosis["results"] != digest(results):
        return None
    return diagnosis
