"""Writes the log of a job that has no terminal: a line per window, and where the time went."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

from exfm.interfaces.data_source import Window
from exfm.reporting.log_lines import (
    LogFormat,
    bytes_text,
    json_line,
    ne_text,
    now_text,
    seconds_text,
    shares_text,
)
from exfm.reporting.memory import device_bytes, peak_bytes, resident_bytes

WINDOW_EVERY_S = 2.0
"""Windows that end within so many seconds of a line are in the next line."""
CHUNK_EVERY_S = 30.0
"""A window that takes longer has a line after so many seconds."""
WAITING_EVERY_S = 600.0
"""A job that waits says so again after so many seconds."""


class PhaseClock(Protocol):
    """Holds the seconds of a run by phase; see ``exfm.bookkeeping.progress.Clock``."""

    def phases(self) -> dict[str, float]:
        """Returns the seconds of each phase so far."""


class Update(Protocol):
    """Describes the progress of a run after a chunk or a window; see ``exfm.bookkeeping.progress.Progress``."""

    @property
    def window(self) -> Window:
        """The window, or that of the chunk."""

    @property
    def windows(self) -> int:
        """Number of windows of the run."""

    @property
    def rows(self) -> int:
        """Rows of the chunk."""

    @property
    def ne(self) -> Mapping[str, float | None]:
        """NE of each model in this window so far."""

    @property
    def labelling(self) -> tuple[str, ...]:
        """Names of the teachers that label the window."""

    @property
    def lag_s(self) -> float | None:
        """Time from the end of the newest finished window to the newest row of the stream."""

    @property
    def clock(self) -> PhaseClock | None:
        """The clock of the run."""


class JobLog:
    """Prints lines on stderr: for the first rows, for windows, within long windows, while waiting, and at the end.

    Args:
        name: of the job, in each line.
    """

    def __init__(self, name: str, log_format: LogFormat) -> None:
        self._name, self._json = name, log_format == LogFormat.JSON
        self._started = self._line_at = time.perf_counter()
        self._rows = self._unseen_rows = 0
        self._window_ends = 0
        self._unseen: Update | None = None
        self._unseen_at, self._unseen_phases = self._started, dict[str, float]()
        self._clock: PhaseClock | None = None
        # By phase, the seconds that earlier lines have accounted for.
        self._counted: dict[str, float] = {}
        self._starting: float | None = None
        self._waiting_for, self._waiting_at = "", 0.0

    def update(self, update: Update, rows: int, elapsed_s: float) -> None:
        """Takes note of a chunk."""
        first = self._starting is None
        self._note(update)
        self._rows, self._unseen_rows = rows, self._unseen_rows + update.rows
        if first or time.perf_counter() - self._line_at >= CHUNK_EVERY_S:
            self._print_window()

    def window(self, update: Update) -> None:
        """Takes note of the end of a window."""
        self._note(update)
        self._window_ends += 1
        if time.perf_counter() - self._line_at >= WINDOW_EVERY_S:
            self._print_window()

    def waiting(self, reason: str) -> None:
        """Says that the job waits for input, at first and then every ten minutes."""
        now = time.perf_counter()
        if reason == self._waiting_for and now - self._waiting_at < WAITING_EVERY_S:
            return
        self._flush()
        # After the flush, whose lines belong to the time before the wait.
        self._waiting_for, self._waiting_at = reason, now
        self._print(f"waiting for {reason}", "waiting", {"waiting_for": reason})

    def stop(self, error: BaseException | None = None) -> None:
        """Prints the windows that no line has, and the line that sums up a job that has begun or waited."""
        self._flush()
        # A job that was refused before its first row has nothing to sum up.
        if self._starting is None and not self._waiting_for:
            return
        total = time.perf_counter() - self._started
        phases = self._phases()
        seconds = {"starting": self._starting or 0.0, **phases}
        seconds["other"] = max(total - sum(seconds.values()), 0.0)
        outcome = type(error).__name__ if error is not None else "done"
        text = f"{outcome} after {seconds_text(total)}: {shares_text(seconds)}"
        if self._rows:
            text += f"; {self._rows:,} rows in {self._window_ends} windows"
        text += f"; at most {bytes_text(peak_bytes())}"
        fields = {
            "outcome": outcome,
            "seconds": _rounded({"total": total, **seconds}),
            "rows": self._rows,
            "windows_done": self._window_ends,
            "peak_memory_bytes": peak_bytes(),
        }
        self._print(text, "end", fields)

    def _note(self, update: Update) -> None:
        self._unseen, self._clock, self._waiting_for = update, update.clock, ""
        # Now, because the evaluation may come before the line is printed.
        self._unseen_at, self._unseen_phases = time.perf_counter(), self._phases()
        if self._starting is None:
            # All time before the first rows that no phase accounts for: imports, and building the models.
            self._starting = max(self._unseen_at - self._started - sum(self._unseen_phases.values()), 0.0)

    def _phases(self) -> dict[str, float]:
        return {} if self._clock is None else self._clock.phases()

    def _flush(self) -> None:
        if self._unseen is not None:
            self._print_window()

    def _print_window(self) -> None:
        update, self._unseen = self._unseen, None
        assert update is not None
        interval, self._line_at = self._unseen_at - self._line_at, self._unseen_at
        seconds = self._since_last_line(interval)
        rows, self._unseen_rows = self._unseen_rows, 0
        # Importing torch and building models is no part of the speed. A clock of low resolution may show no time.
        rate = rows / max(interval - seconds.get("starting", 0.0), 1e-9)
        memory = {"memory_bytes": resident_bytes(), "device_memory_bytes": device_bytes()}
        self._print(
            self._window_text(update, rate, seconds, memory),
            "window",
            {
                "models": list(update.ne),
                "labelling": list(update.labelling),
                "window": update.window.index,
                "window_start": str(update.window),
                "windows": update.windows,
                "windows_done": self._window_ends,
                "lag_s": update.lag_s,
                "rows": self._rows,
                "rows_per_second": round(rate, 1),
                "ne": dict(update.ne),
                **{key: value for key, value in memory.items() if value is not None},
                "elapsed_s": round(self._unseen_at - self._started, 3),
                "seconds": _rounded(seconds),
            },
        )

    def _since_last_line(self, interval: float) -> dict[str, float]:
        """Returns the seconds since the last line by phase, which add up to the interval."""
        phases = {"starting": self._starting or 0.0, **self._unseen_phases}
        seconds = {phase: value - self._counted.get(phase, 0.0) for phase, value in phases.items()}
        seconds["other"] = max(interval - sum(seconds.values()), 0.0)
        self._counted = phases
        return seconds

    def _window_text(
        self, update: Update, rate: float, seconds: Mapping[str, float], memory: Mapping[str, int | None]
    ) -> str:
        words = [f"window {update.window.index + 1} of {update.windows} ({update.window})"]
        if update.lag_s is not None:
            words.append(f"lag {seconds_text(update.lag_s)}")
        words += [f"{self._rows:,} rows", f"{rate:,.0f} rows/s"]
        if update.ne:
            words.append(f"NE {ne_text(update.ne)}")
        if update.labelling:
            words.append(f"labelling with {' '.join(update.labelling)}")
        words += [bytes_text(memory["memory_bytes"] or 0), seconds_text(self._unseen_at - self._started)]
        return f"{', '.join(words)}; {shares_text(seconds)}"

    def _print(self, text: str, event: str, fields: Mapping[str, Any]) -> None:
        line = f"{now_text()} {self._name}: {text}"
        if self._json:
            line = json_line("info", event=event, job=self._name, **fields)
        # Flushed, because stderr of a job is a file, and lines of a job that is killed would be lost.
        print(line, file=sys.stderr, flush=True)


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {phase: round(value, 3) for phase, value in seconds.items()}
