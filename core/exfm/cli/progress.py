"""The progress bar of a run: windows, examples per second, and each model's NE in the current window."""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from exfm.training.loop import Progress as Update


class StreamProgress:
    """Draws on stderr; on anything but a terminal, and in any process of a job but the first, it prints nothing."""

    def __init__(self, name: str) -> None:
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[ne]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not (Console(stderr=True).is_terminal and os.environ.get("RANK", "0") == "0"),
        )
        self._task = self._bar.add_task(name, total=None, speed="", ne="")
        self._started = time.perf_counter()
        self._rows = 0

    def update(self, update: Update) -> None:
        """Shows where the run is."""
        self._rows += update.rows
        speed = self._rows / (time.perf_counter() - self._started)
        ne = "  ".join(f"{model} {value:.4f}" for model, value in update.ne.items() if value is not None)
        self._bar.update(
            self._task,
            completed=update.window.index,
            total=update.windows,
            speed=f"{speed:,.0f} examples/s",
            ne=f"NE {ne}" if ne else "",
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
