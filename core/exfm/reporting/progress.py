"""How far a run has come, on stderr or in a notebook: the window, rows, rows per second, and each model's NE."""

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
_PICTURE_EVERY_S = 0.5


class Update(Protocol):
    """What a run tells after every chunk; see ``exfm.training.loop.Progress``."""

    @property
    def window(self) -> Window:
        """The window in work."""

    @property
    def windows(self) -> int:
        """How many there are."""

    @property
    def rows(self) -> int:
        """Rows of the chunk."""

    @property
    def ne(self) -> Mapping[str, float | None]:
        """NE of each model in this window so far."""


class StreamProgress:
    """Shows progress while its block runs: a bar on a terminal or in a notebook, otherwise a line every ten seconds.

    In any process of a job but the first it shows nothing.
    """

    def __init__(self, name: str) -> None:
        self._display: _Bar | _Picture | _Lines | None = None
        if os.environ.get("RANK", "0") == "0":
            if in_notebook():
                self._display = _Picture(name)
            else:
                self._display = _Bar(name) if Console(stderr=True).is_terminal else _Lines(name)
        self._started = time.perf_counter()
        self._rows = 0

    def update(self, update: Update) -> None:
        """Shows where the run is."""
        self._rows += update.rows
        elapsed_s = time.perf_counter() - self._started
        if self._display is not None:
            self._display.update(update, self._rows, elapsed_s)

    def __enter__(self) -> Self:
        if isinstance(self._display, _Bar):
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._display is not None:
            self._display.stop()


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    interactive = sys.modules.get("IPython")
    return interactive is not None and hasattr(interactive.get_ipython(), "kernel")


def _figures(update: Update, rows: int, elapsed_s: float) -> str:
    ne = " ".join(f"{model} {value:.4f}" for model, value in update.ne.items() if value is not None)
    parts = [
        f"window {update.window.index + 1} of {update.windows} ({update.window})",
        f"{rows:,} rows",
        f"{rows / max(elapsed_s, 1e-9):,.0f} rows/s",
        *([f"NE {ne}"] if ne else []),
        str(timedelta(seconds=int(elapsed_s))),
    ]
    return ", ".join(parts)


class _Lines:
    """A line for the first rows, every ten seconds, and for the last rows."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_s = 0.0
        self._unseen = ""

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        self._unseen = _figures(update, rows, elapsed_s)
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + LINE_EVERY_S
            self._print(self._unseen)
            self._unseen = ""

    def stop(self) -> None:
        if self._unseen:
            self._print(self._unseen)

    def _print(self, text: str) -> None:
        print(f"{self._name}: {text}", file=sys.stderr, flush=True)


class _Picture:
    """A bar in a notebook, of plain HTML: it needs no widgets, and stays when the notebook is saved."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._next_s = 0.0
        self._last = ""
        self._handle: Any = None

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        text = html.escape(f"{self._name}: {_figures(update, rows, elapsed_s)}")
        self._last = f"<progress value='{update.window.index + 1}' max='{update.windows}'></progress> {text}"
        if elapsed_s >= self._next_s:
            self._next_s = elapsed_s + _PICTURE_EVERY_S
            self._draw()

    def stop(self) -> None:
        if self._last:
            self._draw()

    def _draw(self) -> None:
        ipython: Any = import_module("IPython.display")
        picture = ipython.HTML(self._last)
        if self._handle is None:
            self._handle = ipython.display(picture, display_id=True)
        else:
            self._handle.update(picture)


class _Bar:
    """A bar on a terminal."""

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
        self._task = self._bar.add_task(name, total=None, speed="", ne="")

    def start(self) -> None:
        self._bar.start()

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        ne = "  ".join(f"{model} {value:.4f}" for model, value in update.ne.items() if value is not None)
        self._bar.update(
            self._task,
            completed=update.window.index,
            total=update.windows,
            speed=f"{rows / max(elapsed_s, 1e-9):,.0f} rows/s",
            ne=f"NE {ne}" if ne else "",
        )

    def stop(self) -> None:
        self._bar.stop()
