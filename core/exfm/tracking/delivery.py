"""Tells a tracker the windows that it does not have yet, each once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import xxhash

from exfm.config.component_field import ComponentSpec
from exfm.config.run_files import TRACKING_FOLDER
from exfm.errors import ConfigError
from exfm.interfaces.events import (
    RunEnded,
    SnapshotHeld,
    SnapshotPublished,
    TrackedModel,
    TrackedRun,
    WindowCommitted,
)
from exfm.interfaces.tracker import Tracker
from exfm.storage.commits import NONE
from exfm.tracking.run_reader import RunReader

Live = Mapping[int, tuple[float | None, int]]
"""By window, its lag in seconds and the memory of the process in bytes when it was committed."""


def build_tracker(spec: ComponentSpec, run: TrackedRun, key: str) -> Tracker:
    """Builds a tracker, which connects to nothing yet.

    Args:
        key: names it in messages.

    Raises:
        ConfigError: a package is missing, or a field is wrong.
    """
    try:
        tracker: Tracker = spec.build(run)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{key}: {error}") from error
    return tracker


class Delivery:
    """Tells a tracker the events of a run's models, in order.

    Args:
        key: names the tracker's files in the run's folder.
        start: by model, the index of the window after which delivery starts; by default the tracker or the file knows.
    """

    def __init__(self, tracker: Tracker, key: str, start: Mapping[str, int] | None = None) -> None:
        self.tracker = tracker
        self._key = key
        self._start = start
        self._positions: dict[str, int] = {}
        # By model, the window whose events are being delivered, and how many of them the tracker has taken.
        self._partial: dict[str, tuple[int, int]] = {}
        # Models whose newest window is remembered in the run's folder.
        self._in_file: set[str] = set()

    @classmethod
    def build(cls, spec: ComponentSpec, run: TrackedRun, key: str) -> Delivery:
        """Builds a tracker and its delivery."""
        # The file's key has a digest of the section, because two trackers may differ in their settings alone.
        written = repr(sorted(spec.as_dict().items())).encode()
        return cls(build_tracker(spec, run, key), f"{spec.name}-{xxhash.xxh3_64_hexdigest(written)[:8]}")

    def deliver(self, reader: RunReader, live: Live, *, scored: bool = False) -> int:
        """Tells the windows that the tracker lacks; returns how many of them it has taken.

        Raises:
            Exception: the tracker's; a later call goes on with the same event.
        """
        count = 0
        for model in reader.models():
            for window in reader.windows(model, self._position(reader, model), scored=scored):
                if window.window.index in live:
                    lag_s, memory_bytes = live[window.window.index]
                    window = replace(window, lag_s=lag_s, memory_bytes=memory_bytes)
                self._tell_window(reader, model, window)
                count += 1
        return count

    def end(self, event: RunEnded) -> None:
        """Tells the end of a job."""
        self.tracker.run_ended(event)

    def _tell_window(self, reader: RunReader, model: TrackedModel, window: WindowCommitted) -> None:
        index = window.window.index
        begun, taken = self._partial.get(model.name, (index, 0))
        # The count is of an earlier window.
        if begun != index:
            taken = 0
        for number, event in enumerate(_events(reader, window)):
            if number >= taken:
                self._tell(event)
                # After the call, so that an event that raises is delivered again.
                self._partial[model.name] = index, number + 1
        self._positions[model.name] = index
        if model.name in self._in_file:
            # Not synced, because a loss costs no more than telling the window again, which a tracker has to bear.
            value = {"identity": model.identity, "window": index}
            reader.store.workspace.write_json(self._file(model), value, sync=False)

    def _tell(self, event: WindowCommitted | SnapshotPublished | SnapshotHeld) -> None:
        if isinstance(event, WindowCommitted):
            self.tracker.window_committed(event)
        elif isinstance(event, SnapshotPublished):
            self.tracker.snapshot_published(event)
        else:
            self.tracker.snapshot_held(event)

    def _position(self, reader: RunReader, model: TrackedModel) -> int:
        """Returns the index of the newest window of a model that the tracker has."""
        if model.name not in self._positions:
            self._positions[model.name] = self._first_position(reader, model)
        return self._positions[model.name]

    def _first_position(self, reader: RunReader, model: TrackedModel) -> int:
        if self._start is not None:
            return self._start.get(model.name, NONE)
        if self.tracker.newest_only:
            return reader.before_newest(model.name)
        # The system is asked first, because figures may have been removed there since.
        position = self.tracker.last_window(model)
        if position is None:
            self._in_file.add(model.name)
            position = self._remembered(reader, model)
        return position

    def _file(self, model: TrackedModel) -> str:
        return f"{TRACKING_FOLDER}/{self._key}/{model.name}.json"

    def _remembered(self, reader: RunReader, model: TrackedModel) -> int:
        if not reader.store.workspace.exists(self._file(model)):
            return NONE
        kept: dict[str, Any] = reader.store.workspace.read_json(self._file(model))
        # A run that started over in the same folder is another.
        return int(kept["window"]) if kept["identity"] == model.identity else NONE


def _events(reader: RunReader, window: WindowCommitted) -> Iterator[WindowCommitted | SnapshotPublished | SnapshotHeld]:
    """Yields the events of a window; nowhere else is any of them made."""
    yield window
    snapshot = reader.snapshot(window.model, window.window)
    if snapshot is not None:
        yield snapshot
