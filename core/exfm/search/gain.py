"""Sums the losses of an arm and of the arm that it is measured against, on the examples that both predicted."""

from __future__ import annotations

from dataclasses import dataclass, field

from exfm.evaluation.gains import add_common
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.predictions import PredictionReader, task_rows


@dataclass
class GainOverTime:
    """Accumulates the gain of an arm over another, window by window.

    Args:
        arm: the predictions of the arm, and its name.
        reference: the predictions of the other arm, and its name.
        task: the label.
        start_us, end_us: windows that begin in this span count.
    """

    arm: tuple[PredictionReader, str]
    reference: tuple[PredictionReader, str]
    task: str
    start_us: int
    end_us: int
    losses: PairedLosses = field(default_factory=PairedLosses)
    _until_us: int = -1

    def update(self) -> float | None:
        """Adds the windows that are new since the last call; returns the gain in percent, None where there is none."""
        reader, name = self.arm
        other, other_name = self.reference
        windows = {window.start_us: window for window in other.windows(other_name)}
        for window in reader.windows(name):
            counts = self.start_us <= window.start_us < self.end_us and window.start_us in windows
            if window.start_us > self._until_us:
                # Passed even where the other has no such window, because it was trained before and gets none later.
                self._until_us = window.start_us
                if counts:
                    rows = task_rows(reader, name, window, [self.task])
                    other_rows = task_rows(other, other_name, windows[window.start_us], [self.task])
                    add_common(self.losses, rows[self.task], other_rows[self.task])
        return self.losses.gain
