"""Shows the progress of a run on stderr or in a notebook: the window, rows, rows per second, and each model's NE."""

from __future__ import annotations

import html
import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from exfm.interfaces.data_source import Window

LINE_EVERY_S = 10.0
# Each drawing is a message to the browser, so a stream of small chunks must not draw after every chunk.
_DRAW_EVERY_S = 0.5


class Update(Protocol):
    """Describes the progress of a run after a chunk; see ``exfm.bookkeeping.progress.Progress``."""

    @property
    def window(self) -> Window:
        """The window of the chunk."""

    @property
    def windows(self) -> int:
        """Number of windows of the run."""

    @property
    def rows(self) -> int:
        """Rows of the chunk."""

    @property
    def ne(self) -> Mapping[str, float | None]:
        """NE of each model in this window so far."""


class StreamProgress:
    """Shows progress while its block runs: a bar on a terminal or in a notebook, otherwise a line every ten seconds.

    Only rank 0 of a job shows anything.
    """

    def __init__(self, name: str) -> None:
        self._display: _TerminalBar | _NotebookBar | _Lines | None = None
        # From the environment, because progress starts before the process group does.
        if os.environ.get("RANK", "0") == "0":
            self._display = _display_for(name)
        self._started = time.perf_counter()
        self._rows = 0

    def update(self, update: Update) -> None:
        """Shows the progress after a chunk."""
        self._rows += update.rows
        elapsed_s = time.perf_counter() - self._started
        if self._display is not None:
            self._display.update(update, self._rows, elapsed_s)

    def __enter__(self) -> Self:
        if isinstance(self._display, _TerminalBar):
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()


def _display_for(name: str) -> _TerminalBar | _NotebookBar | _Lines:
    """Chooses the display for the notebook, terminal or file that the process writes to."""
    if in_notebook():
        return _NotebookBar(name)
    if Console(stderr=True).is_terminal:
        return _TerminalBar(name)
    return _Lines(name)


def in_notebook() -> bool:
    """Checks whether this process is the kernel of a notebook."""
    # Never imported here: a kernel has imported IPython before any user code, and other processes need not.
    interactive = sys.modules.get("IPython")
    return interactive is not None and hasattr(interactive.get_ipython(), "kernel")


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
        str(timedelta(seconds=int(elapsed_s))),
    ]
    return ", ".join(filter(None, words))


class _Lines:
    """Prints a line for the first rows, every ten seconds, and for the last rows."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_s = 0.0
        self._unseen = ""

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        self._unseen = _line(update, rows, elapsed_s)
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + LINE_EVERY_S
            self._print(self._unseen)
            self._unseen = ""

    def stop(self) -> None:
        if self._unseen:
            self._print(self._unseen)

    def _print(self, text: str) -> None:
        # Flushed, because stderr of a job is a file, and lines of a job that is killed would be lost.
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)


class _NotebookBar:
    """Draws a bar in a notebook with plain HTML: it needs no widgets, and stays when the notebook is saved."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_s = 0.0
        self._last = ""
        self._handle: Any = None

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        text = html.escape(f"{self._name}: {_line(update, rows, elapsed_s)}")
        self._last = f"<progress value='{update.window.index + 1}' max='{update.windows}'></progress> {text}"
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + _DRAW_EVERY_S
            self._draw()

    def stop(self) -> None:
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


class _TerminalBar:
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
        self._bar.start()

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        self._bar.update(
            self._task,
            completed=update.window.index,
            total=update.windows,
            speed=_rows_per_second(rows, elapsed_s),
            ne=_ne_words(update, "  "),
        )

    def stop(self) -> None:
        self._bar.stop()
