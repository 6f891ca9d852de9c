"""The events of a run, and the descriptions of its models that they hold, for trackers."""

from __future__ import annotations

from exfm.interfaces.events import (
    Event,
    Outcome,
    RunEnded,
    SnapshotHeld,
    SnapshotPublished,
    TrackedModel,
    TrackedRun,
    WindowCommitted,
)

__all__ = [
    "Event",
    "Outcome",
    "RunEnded",
    "SnapshotHeld",
    "SnapshotPublished",
    "TrackedModel",
    "TrackedRun",
    "WindowCommitted",
]
