"""Registers students of other runs in their teacher's folder, so that the teacher keeps what they have not read yet.

A reader is a file ``readers/DIGEST.json``. Its students' progress is read from the commits in their own run's folder.
"""

from __future__ import annotations

import json
import logging
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import xxhash

from exfm.config.retention import RetentionRecord, read_retention
from exfm.config.run_files import SIBLING, draft_file, record_file
from exfm.errors import RunError
from exfm.redaction import concealed
from exfm.storage.commits import NONE, CommitLog
from exfm.storage.progress import needed_from_us
from exfm.storage.workspace import Workspace

STALE = timedelta(days=30)
"""Age of a reader's last commit, or of its last start, from which nothing is kept for it."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reader:
    """Names students in another run that learn from a model of this run.

    Attributes:
        run: the folder of their run.
        teacher: the model of this run.
        students: by student, whether it reads the teacher's snapshots, and not its supervision alone.
        opened_at: time of the last start of a job with these students, ISO 8601, UTC.
        machine: the machine whose disk holds their run; empty if it is in an object store.
        version: the snapshot at which the teacher is frozen for them; None where they read its supervision.
    """

    run: str
    teacher: str
    students: Mapping[str, bool]
    opened_at: str
    machine: str
    version: int | None = None


@dataclass(frozen=True)
class Progress:
    """Describes how far a student has come.

    Attributes:
        from_us: start of the first window whose supervision, and snapshot, it may still read.
        reads_snapshots: whether it reads snapshots.
        ignored: why nothing is kept for it; empty where it counts.
    """

    run: str
    student: str
    from_us: int
    reads_snapshots: bool
    ignored: str = ""

    @property
    def name(self) -> str:
        """Returns the student's name, with its run where it is another."""
        return f"{self.student} of {self.run}" if self.run else self.student


class Readers:
    """Registers readers in a run's folder, and reads their progress."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._warned: set[str] = set()

    def register(self, run: Workspace, teacher: str, students: Mapping[str, bool], version: int | None = None) -> None:
        """Registers students of another run; a folder that cannot be written to is a warning.

        Args:
            students: by student, whether it reads the teacher's snapshots, and not its supervision alone.
            version: the snapshot at which the teacher is frozen for them, if it is.
        """
        where = _run_url(run, self.workspace)
        key = [where, teacher, dict(sorted(students.items())), *(() if version is None else (version,))]
        name = xxhash.xxh3_64_hexdigest(json.dumps(key).encode())
        machine = platform.node() if run.is_local else ""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        reader = Reader(where, teacher, dict(students), now, machine, version)
        try:
            self.workspace.write_json(f"readers/{name}.json", asdict(reader))
        except Exception as error:  # each file system has its own exceptions, and none may stop the student
            logger.warning(
                "%s: %s cannot be registered as readers of %r: %s. The run may remove what they have not read yet: let "
                "its models keep enough (models.%s.keep)",
                *(self.workspace.url, ", ".join(students), teacher, error, teacher),
            )

    def progress(self, teacher: str) -> list[Progress]:
        """Reads the progress of the registered students of a model that read its supervision."""
        progress: list[Progress] = []
        for reader in self._registered(teacher):
            if reader.version is None:
                for student, reads_snapshots in reader.students.items():
                    progress.append(self._progress(reader, student, reads_snapshots))
        return progress

    def frozen_versions(self, teacher: str) -> set[int]:
        """Returns the snapshots at which other runs have frozen a model, for students that count as readers."""
        versions: set[int] = set()
        for reader in self._registered(teacher):
            if reader.version is not None:
                progress = [self._progress(reader, student, True) for student in reader.students]
                if not all(student.ignored for student in progress):
                    versions.add(reader.version)
        return versions

    def _registered(self, teacher: str) -> Iterator[Reader]:
        """Yields the readers of a model."""
        for name in self.workspace.names("readers"):
            try:
                reader = Reader(**self.workspace.read_json(f"readers/{name}"))
            except FileNotFoundError:
                continue
            except (RunError, TypeError) as error:
                self._warn(f"readers/{name}", f"not counted as a reader: {error}")
                continue
            if reader.teacher == teacher:
                yield reader

    def needed_us(self, teacher: str, delay_us: int) -> int:
        """Returns the earliest time for which a registered student may still read a snapshot of a model."""
        needed = sys.maxsize
        for student in self.progress(teacher):
            if student.reads_snapshots and not student.ignored:
                needed = min(needed, student.from_us - delay_us)
        return needed

    def _progress(self, reader: Reader, student: str, reads_snapshots: bool) -> Progress:
        url = reader.run
        if url.startswith(SIBLING):
            url = f"{_absolute(self.workspace).rpartition('/')[0]}/{url.removeprefix(SIBLING)}"
        from_us = 0
        last, ignored = reader.opened_at, ""
        try:
            # A new log each time, because a log remembers the newest commit, and that run may have started over.
            log = CommitLog(Workspace(url))
            log.workspace.fs.invalidate_cache()  # a cached listing may be older than the folder
            if not log.workspace.fs.exists(log.workspace.root):
                if reader.machine not in ("", platform.node()):
                    raise RunError(f"it is not visible on this machine, and may be on a disk of {reader.machine}")
                ignored = "its run's folder is gone"
            else:
                retention = read_retention_of(log.workspace, student) or RetentionRecord()
                from_us = needed_from_us(log, student, retention)
                done = log.head("train", student)
                if done != NONE:
                    last = max(last, log.load("train", student, done).written_at)
        except Exception as error:  # whatever another run's file system raises must not stop this run
            self._warn(url, f"the progress of {student!r} cannot be read, all is kept for it: {error}")
        if not ignored and datetime.now(UTC) - datetime.fromisoformat(last) > STALE:
            ignored = f"it has not committed for more than {STALE.days} days"
        return Progress(url, student, from_us, reads_snapshots, ignored)

    def _warn(self, subject: str, message: str) -> None:
        """Logs a warning once, because a trainer reads the progress after every window."""
        if subject not in self._warned:
            self._warned.add(subject)
            logger.warning("%s: %s: %s", self.workspace.url, subject, message)


def read_retention_of(workspace: Workspace, model: str) -> RetentionRecord | None:
    """Reads from a model's record what retention has to know of it; None without a record."""
    for path in (record_file(model), draft_file(model)):
        try:
            return read_retention(workspace.read_json(path))
        except FileNotFoundError:
            continue
    return None


def _run_url(run: Workspace, teacher: Workspace) -> str:
    """Returns the URL of a run as its teacher's run is to read it: it does not depend on the job's working folder."""
    url, beside = _absolute(run), _absolute(teacher)
    if url.rpartition("/")[0] == beside.rpartition("/")[0]:
        return SIBLING + url.rpartition("/")[2]
    return str(concealed(url))


def _absolute(run: Workspace) -> str:
    # On a disk the root is an absolute path; elsewhere a URL without credentials.
    return (run.root if run.is_local else str(run.fs.unstrip_protocol(run.root))).rstrip("/")
