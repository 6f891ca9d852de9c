"""The table that `exfm diagnose` prints, and which diagnosis a report shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from exfm.diagnosis.diagnose import digest
from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import MISSING, fixed, interval, percent, signed
from exfm.reporting.results import DIAGNOSIS_FILE
from exfm.supervision.workspace import Workspace

Json = Mapping[str, Any]

_FIGURES = ("verdict", "NE gain (95% interval)", "headroom (95% interval)", "gain share", "supervised", "confirmed")


def diagnosis_table(diagnosis: Json) -> FittedTable:
    """Shows the verdict of each student, task and teacher beside its main figures, and settings to try below."""
    notes = []
    for entry in diagnosis["students"]:
        notes.append(f"\n{entry['model']}, {entry['task']}, taught by {entry['teacher']}: {entry['verdict']['words']}")
        if entry["verdict"]["also"]:
            notes.append(f"  also: {', '.join(entry['verdict']['also'])}")
        notes += [f"  try {setting}" for setting in entry["verdict"]["settings"]]
    left_out = [f"left out: {reason}" for reason in diagnosis["left_out"]]
    if not diagnosis["students"]:
        left_out.insert(
            0, "no model of this run has both a teacher and a control; control: true under a model adds one"
        )
    table = FittedTable(
        f"{diagnosis['experiment']}: why transfer pays or does not",
        ["student", "task", "teacher"],
        _FIGURES,
        [*notes, "", *left_out],
    )
    for entry in diagnosis["students"]:
        verdict = Text(entry["verdict"]["cause"], style="green" if entry["verdict"]["cause"] == "pays" else "")
        cells: list[Text | str] = [verdict, difference(entry["gain"]), difference(entry["headroom"]["recalibrated"])]
        cells += [
            fixed(entry["gain_share"], 2),
            percent(entry["reach"]["supervised_share"]),
            fixed(entry["agreement"]["confirmed"], 2),
        ]
        table.add_row((entry["model"], entry["task"], entry["teacher"]), cells)
    return table


def difference(figure: Json | None) -> str:
    """Writes a difference in percent with its interval."""
    if figure is None or figure["percent"] is None:
        return MISSING
    bounds = "" if figure["interval95"] is None else f" ({interval(figure['interval95'])})"
    return f"{signed(figure['percent'])}%{bounds}"


def kept_diagnosis(workspace: Workspace, results: Json) -> Json | None:
    """Reads a run's diagnosis; None where there is none, or where it belongs to other results."""
    if not workspace.exists(DIAGNOSIS_FILE):
        return None
    diagnosis: Json = workspace.read_json(DIAGNOSIS_FILE)
    return diagnosis if diagnosis["results"] == digest(results) else None
