"""Keeps the record of a job that runs, in its run's folder, while its block runs.

A thread writes it every few seconds, so that a job in a long step, or one that waits, shows that it is alive.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, replace
from types import TracebackType
from typing import Final, Self

from exfm.bookkeeping.progress import Progress
from exfm.redaction import redact
from exfm.storage.job_records import JobRecord, JobStage, JobState, new_record, utc_now, write_record
from exfm.storage.workspace import Workspace

logger = logging.getLogger(__name__)

LOCAL_BEAT_S: Final = 2.0
REMOTE_BEAT_S: Final = 10.0  # a store is paid by request: 300 jobs write 2.6 million times a day

_RATE_S: Final = 60.0
"""Time over which rows per second are measured: longer than a commit, shorter than a change that matters."""


class RunningJob:
    """Writes the record of a job: at once when its state changes, else at each beat.

    Args:
        workspace: the run's folder.
        job: names the job in its run.
        stage: the command.
        models: the models that it trains, or labels with.
        enabled: False on every rank but zero, whose record is the job's.
    """

    def __init__(
        self, workspace: Workspace, job: str, stage: JobStage, models: Sequence[str], enabled: bool = True
    ) -> None:
        self._workspace = workspace
        self._enabled = enabled
        self._every_s = LOCAL_BEAT_S if workspace.is_local else REMOTE_BEAT_S
        self._record: JobRecord = new_record(job, stage, models, self._every_s)
        # Two locks, because training must not wait for a slow store: of the record, and of the order of its writes.
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._recent: deque[tuple[float, int]] = deque()
        self._is_failing = False

    def update(self, progress: Progress, stream_until_us: int) -> None:
        """Notes the progress after a chunk; the next beat writes it.

        Args:
            stream_until_us: time for which the stream is complete.
        """
        now = time.monotonic()
        rows = self._record.rows + progress.rows
        self._recent.append((now, rows))
        while now - self._recent[0][0] > _RATE_S:
            self._recent.popleft()
        since, before = self._recent[0]
        rate = None if now == since else (rows - before) / (now - since)
        # At once, because a watcher would take a job that works for a job that waits until the next beat.
        if self._record.state != "running":
            self._write(state="running", waiting_for="")
        with self._lock:
            self._record = replace(
                self._record,
                window=asdict(progress.window),
                windows=progress.windows,
                stream_until_us=stream_until_us,
                rows=rows,
                rows_per_second=rate,
                moved=utc_now(),
                ne=dict(progress.ne),
            )

    def wait_for(self, awaited: str, stream_until_us: int) -> None:
        """Notes that the job waits, and for which input."""
        with self._lock:
            self._record = replace(self._record, stream_until_us=stream_until_us)
        if (self._record.state, self._record.waiting_for) != ("waiting", awaited):
            # A rate over a wait would measure the wait.
            self._recent.clear()
            self._write(state="waiting", waiting_for=redact(awaited))

    def leave_waiting(self, awaited: str) -> None:
        """Notes the input for which a job that ends would have waited; empty if none."""
        with self._lock:
            self._record = replace(self._record, waiting_for=redact(awaited))

    def __enter__(self) -> Self:
        if self._enabled:
            self._write(state="running")
            # A daemon, because a job that is ended from elsewhere must not wait for it.
            self._thread = threading.Thread(target=self._beat, name="job record", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        # The thread ends first, so that no beat is written after the end.
        if self._thread is not None:
            self._thread.join()
        if isinstance(error, KeyboardInterrupt):  # a signal: Ctrl-C or SIGTERM
            self._write(state="stopped")
        elif error is not None:
            self._write(state="failed", error=_line(error))
        else:
            self._write(state="done")

    def _beat(self) -> None:
        while not self._over.wait(self._every_s):
            self._write()

    def _write(self, state: JobState | None = None, waiting_for: str | None = None, error: str = "") -> None:
        """Writes the record, with changes; a failure is warned of once, and ends no job."""
        with self._writing:
            with self._lock:
                record = replace(self._record, beat=utc_now(), error=error)
                if state is not None:
                    record = replace(record, state=state)
                if waiting_for is not None:
                    record = replace(record, waiting_for=waiting_for)
                self._record = record
            if not self._enabled:
                return
            try:
                write_record(self._workspace, record)
                self._is_failing = False
            except Exception as problem:  # of any store: the job's result does not depend on its record
                if not self._is_failing:
                    logger.warning("the record of this job for `exfm status` cannot be written: %s", _line(problem))
                self._is_failing = True


def _line(error: BaseException) -> str:
    """Describes an error in a line without secrets."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | RuntimeError) and text:  # the errors that exfm raises speak for themselves
        return redact(text)
    return redact(f"{type(error).__name__}: {text}" if text else type(error).__name__)
