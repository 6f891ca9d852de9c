"""Resolves the snapshots at which an experiment freezes teachers of other runs, once for a run.

``frozen.json`` keeps each version that an alias or a time has named, so that a later promotion changes no run half-way.
A frozen teacher's supervision is the run's own, under the name ``TEACHER@VERSION``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

from exfm.config.lenders import Lender
from exfm.config.run_files import FROZEN_FILE
from exfm.storage.commits import NONE, CommitLog
from exfm.storage.snapshot_at import snapshot_at
from exfm.storage.snapshots import SnapshotRegistry
from exfm.storage.workspace import Workspace


@dataclass(frozen=True)
class FrozenTeacher:
    """Names the snapshot at which a run has frozen a teacher.

    Attributes:
        teacher: the teacher's name in the run.
        at: the version, alias or time that the experiment file names.
        digest: the checksum of the teacher's identity.
    """

    teacher: str
    at: str
    digest: str
    version: int

    @property
    def stored_as(self) -> str:
        """Returns the name of its supervision in the run's folder."""
        return f"{self.teacher}@{self.version}"


def lent_snapshots(lender: Lender) -> SnapshotRegistry:
    """Opens the snapshots of the run that trains a teacher."""
    workspace = Workspace(lender.run)
    return SnapshotRegistry(workspace, CommitLog(workspace))


def resolve_frozen(workspace: Workspace, log: CommitLog, lender: Lender) -> FrozenTeacher:
    """Returns the snapshot of a frozen teacher: as the run has begun with it, or as its run has it now.

    Args:
        workspace, log: the folder of the run that freezes the teacher.

    Raises:
        ConfigError: no such snapshot is stored.
    """
    for kept in kept_frozen(workspace):
        begun = log.head("supervise", kept.stored_as) != NONE
        if begun and (kept.teacher, kept.at, kept.digest) == (lender.arm.name, lender.at, lender.digest):
            return kept
    snapshot = snapshot_at(lent_snapshots(lender), lender.model, lender.at)
    return FrozenTeacher(lender.arm.name, lender.at, lender.digest, snapshot.version)


def kept_frozen(workspace: Workspace) -> list[FrozenTeacher]:
    """Reads the frozen teachers of a run, those of its newest job last."""
    if not workspace.exists(FROZEN_FILE):
        return []
    return [FrozenTeacher(**entry) for entry in workspace.read_json(FROZEN_FILE)]


def keep_frozen(workspace: Workspace, frozen: Collection[FrozenTeacher]) -> None:
    """Adds the frozen teachers of a job to those that the run keeps."""
    if frozen:
        others = [kept for kept in kept_frozen(workspace) if kept not in frozen]
        workspace.write_json(FROZEN_FILE, list(map(asdict, (*others, *frozen))))
