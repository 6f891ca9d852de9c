"""Records the jobs of a run: who runs which models, how far, and since when without a sign of life.

``jobs/NAME.json`` is written by the job that it describes and by nobody else. No result depends on it: manifests do not
name it, and a record that is lost or damaged is missing until the job writes it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import quote

from exfm.config.run_files import JOBS_FOLDER
from exfm.storage.temporary import machine_name
from exfm.storage.workspace import Workspace

JobStage = Literal["run", "train", "supervise"]
JobState = Literal["running", "waiting", "done", "stopped", "failed"]
LIVE: Final = ("running", "waiting")

_LONGEST_NAME: Final = 120  # well below the 255 bytes that file systems allow a name
_SILENT_S: Final = 30.0
"""Age of a beat from which a job of another machine counts as dead: clocks of machines agree to within seconds."""


@dataclass(frozen=True)
class JobRecord:
    """Describes a job as it was at its last beat.

    Attributes:
        job: names the job in its run.
        stage: ``run`` trains and labels; the others do as their commands say.
        models: the models that it trains, or labels with.
        host: the machine, for people.
        machine: the machine, its start and its space of process ids: processes of equal ``machine`` see each other.
        pid, pid_started: the process, and a number that tells it from a later process of the same id.
        started, beat: times, ISO 8601, UTC.
        every_s: seconds between two beats.
        waiting_for: the input that it waits for, or waited for when it ended.
        window: its window now: ``index``, ``start_us``, ``end_us``; empty before the first.
        windows: number of windows that the stream spans, as far as the job has seen it.
        stream_until_us: time for which the stream was complete when the job last looked; 0 before.
        rows, rows_per_second: rows since its start, and the rate over the last minute.
        moved: time of the last chunk, ISO 8601, UTC; empty before the first.
        ne: NE in its window so far, by model.
        error: why it failed, in a line without secrets.
    """

    job: str
    stage: JobStage
    models: tuple[str, ...]
    host: str
    machine: str
    pid: int
    pid_started: str
    started: str
    beat: str
    every_s: float
    state: JobState = "running"
    waiting_for: str = ""
    window: Mapping[str, int] = field(default_factory=dict)
    windows: int = 0
    stream_until_us: int = 0
    rows: int = 0
    rows_per_second: float | None = None
    moved: str = ""
    ne: Mapping[str, float | None] = field(default_factory=dict)
    error: str = ""

    def silent_s(self, now: datetime) -> float:
        """Returns the seconds since the last beat."""
        return (now - datetime.fromisoformat(self.beat)).total_seconds()

    def is_dead(self, now: datetime) -> bool:
        """Tells whether the job ended without writing so: its process is gone, or has long been silent."""
        if self.state not in LIVE:
            return False
        if self.machine == _machine():
            return not _is_alive(self.pid, self.pid_started)
        # Three beats, because a slow store may delay the last.
        return self.silent_s(now) > max(_SILENT_S, 3 * self.every_s)


def record_path(job: str) -> str:
    """Returns the path of a job's record; that of a long name ends in a digest."""
    name = quote(job, safe="")
    if len(name) > _LONGEST_NAME:
        digest = hashlib.sha256(job.encode()).hexdigest()[:12]  # 48 bits, far more than a run has jobs
        name = f"{name[: _LONGEST_NAME - len(digest) - 1]}-{digest}"
    return f"{JOBS_FOLDER}/{name}.json"


def new_record(job: str, stage: JobStage, models: Sequence[str], every_s: float) -> JobRecord:
    """Describes a job of this process that begins now."""
    now = utc_now()
    return JobRecord(
        job=job,
        stage=stage,
        models=tuple(models),
        host=socket.gethostname(),
        machine=_machine(),
        pid=os.getpid(),
        pid_started=_started(os.getpid()),
        started=now,
        beat=now,
        every_s=every_s,
    )


def utc_now() -> str:
    """Returns the time as a record has it, ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def write_record(workspace: Workspace, record: JobRecord) -> None:
    """Writes the record of a job over its last."""
    workspace.overwrite(record_path(record.job), (json.dumps(asdict(record), indent=2) + "\n").encode())


def read_records(workspace: Workspace) -> list[JobRecord]:
    """Reads the records of a run's jobs, by name; those that are damaged, or of a later format, are left out."""
    records: list[JobRecord] = []
    for name in workspace.names(JOBS_FOLDER):
        # A store without atomic writes may show half a record, and a job may be started over meanwhile.
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError):
            records.append(_parse(workspace.read(f"{JOBS_FOLDER}/{name}")))
    return records


def _parse(data: bytes) -> JobRecord:
    raw: dict[str, Any] = json.loads(data)
    # A watcher may be older or newer than the job: keys that it does not have are ignored.
    values = {entry.name: raw[entry.name] for entry in fields(JobRecord) if entry.name in raw}
    record = JobRecord(**{**values, "models": tuple(values["models"])})
    datetime.fromisoformat(record.beat)  # raises where it is no time
    return record


def _machine() -> str:
    """Returns the machine with its start and its space of process ids, which containers have each."""
    space = ""
    with suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{machine_name()} {space}".strip()


def _started(pid: int) -> str:
    """Returns when a process was started, in ticks since the machine was; empty where the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *later = stat.rpartition(")")[2].split()
    # A killed process whose parent has not asked for its status is dead. 22 is starttime in proc(5), 3 is the state.
    return "" if state == "Z" else later[22 - 4]


def _is_alive(pid: int, started: str) -> bool:
    """Tells whether a process of this machine runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    # The system may have given the id to a later process.
    return _started(pid) == started
