"""Arguments, time budget and results that all scripts of this folder share."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import environment, select_device

Cell = float | int | str | None


@dataclass
class Report:
    """A table whose rows are filled cell by cell, and written as JSON after each change.

    A script that is stopped leaves the rows that it has measured.

    Args:
        name: the script's name, and that of the JSON file.
        question: the question that the table answers.
        columns: the printed columns, with their formats; JSON has all cells.
        out: folder of the JSON file.
        device: the device that is measured.
        seconds: the script's time budget.
        tiny: whether sizes are so small that figures mean nothing, to check the script alone.
        only: names of the rows to measure; all where it is empty.
    """

    name: str
    question: str
    columns: Mapping[str, str]
    out: Path
    device: torch.device
    seconds: float
    tiny: bool
    only: frozenset[str]
    started: float = field(default_factory=time.monotonic)
    rows: dict[str, dict[str, Cell]] = field(default_factory=dict)
    notes: dict[str, Cell] = field(default_factory=dict)

    def measures(self, name: str) -> bool:
        """Returns whether a row was asked for."""
        return not self.only or name in self.only

    def note(self, **notes: Cell) -> None:
        """Records figures that belong to no row."""
        self.notes.update(notes)
        self._write()

    def fill(self, row: str, measure: Callable[[], Mapping[str, Cell]], column: str, expected_s: float = 0) -> None:
        """Fills cells of a row by a measurement; a failure, or a lack of time, is written in place of the figures.

        Args:
            measure: returns cells by column.
            column: the column that says so where there are no figures.
            expected_s: the seconds that must be left of the budget.
        """
        cells = self.rows.setdefault(row, {})
        left = self.seconds - (time.monotonic() - self.started)
        if left < expected_s:
            cells[column] = "no time"
        else:
            print(f"{self.name}: {row}: {column} ...", file=sys.stderr, flush=True)
            try:
                cells.update(measure())
            # Whatever fails, such as memory or a compiler, the other rows are measured.
            except Exception as error:
                cells[column] = "failed"
                cells[f"{column} error"] = f"{type(error).__name__}: {error}"[:2000]
        self._write()

    def _write(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        result = {
            "name": self.name,
            "question": self.question,
            "tiny": self.tiny,
            "seconds": round(time.monotonic() - self.started, 1),
            "environment": environment(self.device),
            "notes": self.notes,
            "rows": self.rows,
        }
        (self.out / f"{self.name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    def show(self) -> None:
        """Prints the table."""
        self._write()
        print(f"{self.question}{' (tiny sizes: figures mean nothing)' if self.tiny else ''}")
        for name, note in self.notes.items():
            print(f"{name}: {_text(note, '.1f')}")
        lines = [["", *self.columns]]
        for row, cells in self.rows.items():
            lines.append([row, *(_text(cells.get(column), form) for column, form in self.columns.items())])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            first, *others = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
            print("  ".join([first.strip().ljust(widths[0]), *others]))
        failures = [(row, column, cell) for row, cells in self.rows.items() for column, cell in cells.items()]
        for row, column, cell in failures:
            if column.endswith(" error"):
                print(f"{row}: {column}: {str(cell).splitlines()[0]}")


def _text(cell: Cell, form: str) -> str:
    if cell is None:
        return "-"
    return cell if isinstance(cell, str) else format(cell, form)


def start(name: str, question: str, columns: Mapping[str, str], arguments: Sequence[str] | None = None) -> Report:
    """Reads the arguments that all scripts take, and starts the report."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the JSON file")
    parser.add_argument("--device", default="auto", help="cuda, cpu or auto")
    parser.add_argument("--seconds", type=float, default=420, help="time budget; rows after it are left out")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which check the script on a CPU")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="measure these rows alone")
    read = parser.parse_args(arguments)
    device = select_device(read.device)
    only = frozenset(read.only)
    return Report(name, question, columns, read.out, device, read.seconds, read.tiny, only)
