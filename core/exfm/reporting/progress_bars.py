"""Draws the progress of a run as a bar: on a terminal, or in a notebook."""

from __future__ import annotations

import html
from importlib import import_module
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from exfm.reporting.job_log import Update
from exfm.reporting.log_lines import seconds_text

# Each drawing is a message to the browser, so a stream of small chunks must not draw after every chunk.
_DRAW_EVERY_S = 0.5


def _ne_words(update: Update, separator: str) -> str:
    """Formats the NE of each model; empty where no model has any yet."""
    words = [f"{model} {value:.4f}" for model, value in update.ne.items() if value is not None]
    if not words:
        return ""
    return f"NE {separator.join(words)}"


def _rows_per_second(rows: int, elapsed_s: float) -> str:
    # A clock of low resolution may show no time at all after the first chunk.
    return f"{rows / max(elapsed_s, 1e-9):,.0f} rows/s"


def _line(update: Update, rows: int, elapsed_s: float) -> str:
    """Formats progress as a line of text."""
    words = [
        f"window {update.window.index + 1} of {update.windows} ({update.window})",
        f"{rows:,} rows",
        _rows_per_second(rows, elapsed_s),
        _ne_words(update, " "),
        seconds_text(elapsed_s),
    ]
    return ", ".join(filter(None, words))


class NotebookBar:
    """Draws a bar in a notebook with plain HTML: it needs no widgets, and stays when the notebook is saved."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_s = 0.0
        self._last = ""
        self._handle: Any = None

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        """Shows the progress after a chunk."""
        # Escaped, because names come from the experiment file, and must not act as HTML.
        text = html.escape(f"{self._name}: {_line(update, rows, elapsed_s)}")
        self._last = f"<progress value='{update.window.index + 1}' max='{update.windows}'></progress> {text}"
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + _DRAW_EVERY_S
            self._draw()

    def stop(self) -> None:
        """Draws the last state."""
        # The last update may have come too soon after a drawing to be drawn.
        if self._last:
            self._draw()

    def _draw(self) -> None:
        # Imported here, because IPython is no dependency: it is there where a notebook is.
        ipython: Any = import_module("IPython.display")
        picture = ipython.HTML(self._last)
        if self._handle is None:
            self._handle = ipython.display(picture, display_id=True)
        else:
            self._handle.update(picture)


class TerminalBar:
    """Draws a bar on a terminal."""

    def __init__(self, name: str) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[ne]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        # The number of windows is unknown until the first chunk arrives.
        self._task = self._bar.add_task(name, total=None, speed="", ne="")

    def start(self) -> None:
        """Shows the bar."""
        self._bar.start()

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        """Shows the progress after a chunk."""
        self._bar.update(
            self._task,
            # Without this window, which is still under way.
            completed=update.window.index,
            total=update.windows,
            speed=_rows_per_second(rows, elapsed_s),
            ne=_ne_words(update, "  "),
        )

    def stop(self) -> None:
        """Draws the last state."""
        self._bar.stop()
