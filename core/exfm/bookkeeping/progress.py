"""Reports the position of a run in its stream, and the time that each phase has taken."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from exfm.interfaces.data_source import Window


@dataclass
class Clock:
    """Adds up the seconds of a run by phase."""

    started: float = field(default_factory=time.perf_counter)
    first_batch: float | None = None
    data: float = 0.0
    train: float = 0.0
    supervise: float = 0.0
    commit: float = 0.0
    wait: float = 0.0
    evaluate: float = 0.0

    def since_start(self) -> float:
        """Returns the seconds since the run began."""
        return time.perf_counter() - self.started

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Counts the time of its block as evaluation."""
        start = time.perf_counter()
        yield
        self.evaluate += time.perf_counter() - start

    def phases(self) -> dict[str, float]:
        """Returns the seconds of each phase so far, under the names that a log uses."""
        return {
            "training": self.train,
            "reading": self.data,
            "supervision": self.supervise,
            "committing": self.commit,
            "waiting": self.wait,
            "evaluation": self.evaluate,
        }

    def as_dict(self) -> dict[str, float | None]:
        """Returns the `time` section of results.json.

        Effective training time is the share of all time that was spent on learning from new data.
        """
        total = self.since_start()
        first_batch_s: float | None = None
        if self.first_batch is not None:
            first_batch_s = round(self.first_batch, 3)
        return {
            "total_s": round(total, 3),
            "time_to_first_batch_s": first_batch_s,
            "data_s": round(self.data, 3),
            "train_s": round(self.train, 3),
            "supervise_s": round(self.supervise, 3),
            "commit_s": round(self.commit, 3),
            "effective_training_time": round(self.train / total, 4),
        }


@dataclass(frozen=True)
class Progress:
    """Describes the chunk or the window that a run has finished.

    Attributes:
        window: the window, or that of the chunk.
        windows: number of windows in the stream.
        rows: number of rows of the chunk; 0 of a window, whose chunks have been counted.
        ne: NE of each model's first task in this window so far.
        labelling: names of the teachers that label the window with a snapshot.
        lag_s: the time from the end of the newest finished window to the newest row of the stream; None if unknown.
        clock: the run's clock, which goes on; None where phases are not measured.
    """

    window: Window
    windows: int
    rows: int
    ne: Mapping[str, float | None]
    labelling: tuple[str, ...] = ()
    lag_s: float | None = None
    clock: Clock | None = None
