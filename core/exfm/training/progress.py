"""Where a run is, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from exfm.interfaces.data_source import Window


@dataclass(frozen=True)
class Progress:
    """What a caller is told after every chunk.

    Attributes:
        window: the window in work, one of ``windows`` in all.
        rows: rows of the chunk.
        ne: NE of each model's first task in this window so far.
    """

    window: Window
    windows: int
    rows: int
    ne: Mapping[str, float | None]


@dataclass
class Clock:
    """Where the time of a run goes, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    first_batch: float | None = None
    data: float = 0.0
    train: float = 0.0
    supervise: float = 0.0
    commit: float = 0.0

    def since_start(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def as_dict(self) -> dict[str, float | None]:
        """The `time` section of results.json; effective training time is the share spent on learning from new data."""
        total = self.since_start()
        return {
            "total_s": round(total, 3),
            "time_to_first_batch_s": None if self.first_batch is None else round(self.first_batch, 3),
            "data_s": round(self.data, 3),
            "train_s": round(self.train, 3),
            "supervise_s": round(self.supervise, 3),
            "commit_s": round(self.commit, 3),
            "effective_training_time": round(self.train / total, 4),
        }
