"""Tracker: takes the events of a run to a system that keeps or shows figures."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from exfm.interfaces.component import Component, ComponentConfig
from exfm.interfaces.events import (
    RunEnded,
    SnapshotHeld,
    SnapshotPublished,
    TrackedModel,
    TrackedRun,
    WindowCommitted,
)


class Tracker(Component):
    """Receives the events of a run's models, each model's in order, all in a single thread beside the training.

    Every window comes once, also where a job is killed and started again: a job first tells the windows after
    ``last_window``. A method that raises is called with the same event again when the next window is committed; the run
    goes on.

    Attributes:
        newest_only: whether it shows the present alone, so that a job that starts tells it no window but the newest.
    """

    kind: ClassVar[str] = "tracker"
    newest_only: ClassVar[bool] = False

    def __init__(self, config: ComponentConfig, run: TrackedRun) -> None:
        """Checks that packages are there, and connects to nothing yet.

        Raises:
            ValueError: a package is missing, or a field is wrong; the job does not begin.
        """
        self.config = config
        self.run = run

    def last_window(self, model: TrackedModel) -> int | None:
        """Returns the index of the newest window that the system has of a model, -1 of none.

        None by default: it cannot tell, and exfm remembers in the run's folder the last delivered window. A job
        that is killed just before it remembers tells that window again.
        """
        return None

    @abstractmethod
    def window_committed(self, event: WindowCommitted) -> None:
        """Takes the figures of a window."""

    def snapshot_published(self, event: SnapshotPublished) -> None:
        """Takes note of a published snapshot, after the event of its window."""

    def snapshot_held(self, event: SnapshotHeld) -> None:
        """Takes note of a snapshot that is held back, after the event of its window."""

    def run_ended(self, event: RunEnded) -> None:
        """Takes note of the end of a job, and of the figures of the whole run where it is complete."""

    def close(self) -> None:
        """Ends what the constructor or an event has begun; no event comes after it."""
