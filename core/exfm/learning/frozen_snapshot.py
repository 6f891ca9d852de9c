"""Finds the snapshot at which a teacher of another run is frozen, for windows that it has not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from exfm.errors import ConfigError
from exfm.interfaces.data_source import Window, utc
from exfm.storage.snapshots import Snapshot, SnapshotRegistry


@dataclass(frozen=True)
class FrozenSnapshot:
    """Names the snapshot at which a teacher of another run is frozen.

    Attributes:
        snapshots: the snapshots of that run.
        model: the teacher's name there.
    """

    snapshots: SnapshotRegistry
    model: str
    version: int

    def at_or_before(self, before_us: int) -> Iterator[Snapshot]:
        """Yields the snapshot if its watermark lies at or before a time."""
        snapshot = self.snapshots.get(self.model, self.version)
        if snapshot.watermark_us <= before_us:
            yield snapshot

    def too_late(self) -> str:
        """Says up to which time the snapshot has trained."""
        snapshot = self.snapshots.get(self.model, self.version)
        return f"snapshot {self.version} of {self.model!r} has trained until {utc(snapshot.watermark_us)}"

    def check(self, last: Window, delay_us: int, key: str) -> None:
        """Checks that the last window of a stream can be labelled.

        Raises:
            ConfigError: the snapshot has trained on that window too, so that its labels would leak.
        """
        if next(self.at_or_before(last.start_us - delay_us), None) is None:
            raise ConfigError(
                f"{key}: {self.too_late()}, and the last window of the stream begins at {last}: rows before that are "
                "not labelled, because labels that it has learned would leak. Name an earlier snapshot: `exfm "
                f"snapshots {self.snapshots.workspace.url} --model {self.model}` lists them"
            )
