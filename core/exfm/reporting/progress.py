"""Shows the progress of a run: a bar on a terminal or in a notebook, and elsewhere the lines of a job's log."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self

from exfm.reporting.job_log import JobLog, Update
from exfm.reporting.log_lines import LogFormat
from exfm.reporting.progress_bars import NotebookBar, TerminalBar


class StreamProgress:
    """Shows progress on stderr or in a notebook while its block runs. Only rank 0 of a job shows anything.

    Args:
        name: of the job.
        log_format: json: lines of JSON even on a terminal.
    """

    def __init__(self, name: str, log_format: LogFormat = LogFormat.TEXT) -> None:
        self._display: TerminalBar | NotebookBar | JobLog | None = None
        # From the environment, because progress starts before the process group does.
        if os.environ.get("RANK", "0") == "0":
            self._display = _display_for(name, log_format)
        self._started = time.perf_counter()
        self._rows = 0

    def update(self, update: Update) -> None:
        """Shows the progress after a chunk."""
        self._rows += update.rows
        elapsed_s = time.perf_counter() - self._started
        if self._display is not None:
            self._display.update(update, self._rows, elapsed_s)

    def window(self, update: Update) -> None:
        """Shows the end of a window, in a log."""
        if isinstance(self._display, JobLog):
            self._display.window(update)

    def waiting(self, reason: str) -> None:
        """Says, in a log, that the job waits for input."""
        if isinstance(self._display, JobLog):
            self._display.waiting(reason)

    def __enter__(self) -> Self:
        if isinstance(self._display, TerminalBar):
            self._display.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(self._display, JobLog):
            self._display.stop(error)
        elif self._display is not None:
            self._display.stop()


def _display_for(name: str, log_format: LogFormat) -> TerminalBar | NotebookBar | JobLog:
    """Chooses the display for the notebook, terminal or file that the process writes to."""
    if log_format == LogFormat.TEXT:
        if in_notebook():
            return NotebookBar(name)
        # Not rich's idea of a terminal: FORCE_COLOR, which build systems set, would draw a bar into a file.
        if sys.stderr.isatty():
            return TerminalBar(name)
    return JobLog(name, log_format)


def in_notebook() -> bool:
    """Checks whether this process is the kernel of a notebook."""
    # Never imported here: a kernel has imported IPython before any user code, and other processes need not.
    interactive = sys.modules.get("IPython")
    return interactive is not None and hasattr(interactive.get_ipython(), "kernel")
