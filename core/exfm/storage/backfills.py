"""Commits rows that a teacher has labelled after their window, beside the supervision of the window.

A window may be labelled several times, for students whose traffic was not labelled before. Its labellings are numbered,
and windows are independent of each other, so that several workers share a back-fill.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from exfm.errors import RunError
from exfm.storage.hashing import FileRecord
from exfm.storage.manifests import file_records, seal, unseal
from exfm.storage.workspace import Workspace, numbered

CLAIM_S = 600.0
"""Seconds after which the claim of a worker that does not renew it counts no more, because the worker has died."""


@dataclass(frozen=True)
class Backfill:
    """Describes a labelling of a window.

    Attributes:
        window: the window's index.
        rows: the labelled rows; none if the window is masked: its students learn from no supervision in it.
        version: the version of the snapshot that labelled them; None if the window is masked.
        reason: why the window is masked.
    """

    window: int
    rows: FileRecord
    version: int | None = None
    reason: str = ""


class Backfills:
    """Reads and creates the labellings of a workspace, under ``commits/backfill/MODEL/``."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def labellings(self, model: str, window: int) -> Sequence[Backfill]:
        """Reads the labellings of a window, in order.

        Raises:
            RunError: a manifest is damaged.
        """
        labellings: list[Backfill] = []
        while (labelling := self._read(model, window, len(labellings))) is not None:
            labellings.append(labelling)
        return labellings

    def windows(self, model: str) -> list[int]:
        """Lists the windows of a model that have been labelled or masked, in order."""
        return numbered(self._workspace.names(f"commits/backfill/{model}"), "-000.json")

    def has(self, model: str, window: int) -> bool:
        """Tells whether a window has been labelled or masked."""
        return self._read(model, window, 0) is not None

    def add(self, model: str, labelling: Backfill, number: int) -> bool:
        """Commits a labelling under a number; returns whether no other worker was faster."""
        manifest = {
            "window": labelling.window,
            "version": labelling.version,
            "reason": labelling.reason,
            "files": {"rows": asdict(labelling.rows)},
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return self._workspace.create(_path(model, labelling.window, number), seal(manifest))

    def _read(self, model: str, window: int, number: int) -> Backfill | None:
        path = _path(model, window, number)
        try:
            raw = unseal(self._workspace.read(path))
            if raw is None:
                return None
            return Backfill(raw["window"], file_records(raw, model)["rows"], raw["version"], raw["reason"])
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(f"{self._workspace.name(path)}: damaged: {error}{self._workspace.remedy}") from error

    def claim(self, model: str, window: int) -> bool:
        """Claims a window for this worker; returns False if another worker that lives has claimed it."""
        path = _claim(model, window)
        now = datetime.now(UTC)
        if self._workspace.create(path, _time(now)):
            return True
        try:
            claimed = datetime.fromisoformat(json.loads(self._workspace.read(path)))
        except (FileNotFoundError, ValueError):
            return False  # released or taken over this moment: a later call sees the result
        if now - claimed < timedelta(seconds=CLAIM_S):
            return False
        # Two workers may take over a dead worker's claim at once: both label, and `add` lets the first commit.
        self._workspace.write(path, _time(now))
        return True

    def renew(self, model: str, window: int) -> None:
        """Renews the claim of a window that takes long."""
        self._workspace.write(_claim(model, window), _time(datetime.now(UTC)))

    def release(self, model: str, window: int) -> None:
        """Gives a claimed window up."""
        self._workspace.remove_file(_claim(model, window))


def _time(time: datetime) -> bytes:
    return json.dumps(time.isoformat()).encode()


def _path(model: str, window: int, number: int) -> str:
    return f"commits/backfill/{model}/{window:06d}-{number:03d}.json"


def _claim(model: str, window: int) -> str:
    return f"commits/backfill/{model}/{window:06d}.claim"
