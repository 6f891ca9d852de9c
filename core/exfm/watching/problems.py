"""Finds the problems of a run: jobs that have crashed, models that stand still, students that lag, held snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from exfm.storage.commits import Stage
from exfm.storage.job_records import LIVE, JobRecord
from exfm.watching.model_status import Chain, Standing
from exfm.watching.watched_models import WatchedModel

ProblemKind = Literal["crashed", "stalled", "lagging", "held", "unreadable"]

_LAGGING_WINDOWS: Final = 2
"""Windows by which a student is behind its teacher's labels: one may be in work, so that two are a sign."""

_SLOW: Final = 3.0
"""Usual times of a window without a commit from which a model counts as standing still."""

_PATIENCE_S: Final = 60.0
"""Seconds without a commit that are no sign, however fast windows usually are."""


@dataclass(frozen=True)
class Problem:
    """Describes a problem to an operator.

    Attributes:
        model: whom it concerns.
        job: the job that it concerns; empty if none.
    """

    kind: ProblemKind
    model: str
    job: str
    text: str


def job_of(records: Sequence[JobRecord], stage: Stage, model: str, now: datetime) -> JobRecord | None:
    """Returns the job that trains a model, or labels with it: the newest that is alive, or else the newest."""
    # `exfm run` both trains and labels.
    jobs = [record for record in records if record.stage in ("run", stage) and model in record.models]
    # An `exfm run` beside jobs that follow the stream ends before them.
    return max(jobs, key=lambda job: (job.state in LIVE and not job.is_dead(now), job.started), default=None)


def find_problems(
    model: WatchedModel,
    standing: Standing,
    jobs: Mapping[Stage, JobRecord | None],
    stream_until_us: int,
    is_under_way: bool,
    now: datetime,
) -> Iterator[Problem]:
    """Yields the problems of a model.

    Args:
        jobs: the job that trains it, and the job that labels with it.
        stream_until_us: time for which the stream is known to be complete.
        is_under_way: whether any job of the run is alive: a run at rest does not stand still.
    """
    chains: dict[Stage, Chain | None] = {"train": standing.trained, "supervise": standing.labelled}
    if model.is_frozen:  # its run need not go on
        chains["train"] = None
    for stage, chain in chains.items():
        job = jobs[stage]
        if chain is None:
            continue
        if job is not None and (job.state == "failed" or job.is_dead(now)):
            # A job that trains and labels is named once.
            if stage == "train" or job != jobs["train"]:
                yield Problem("crashed", model.name, job.job, _last_words(job, now))
        elif is_under_way and _stands_still(chain, job, stream_until_us, now):
            yield Problem("stalled", model.name, "" if job is None else job.job, _standstill(stage, chain, job, now))
    for teacher, figures in standing.teachers.items():
        if figures.behind_windows is not None and figures.behind_windows >= _LAGGING_WINDOWS:
            text = f"{figures.behind_windows} windows behind the labels of {teacher}"
            yield Problem("lagging", model.name, "", text)
    if standing.snapshot is not None and standing.snapshot.held:
        held = standing.snapshot
        usage = "no snapshot is in use" if held.in_use is None else f"snapshot {held.in_use} is in use"
        reasons = "; ".join(held.held.values())
        yield Problem("held", model.name, "", f"snapshot {held.newest} is held, and {usage}: {reasons}")


def _last_words(job: JobRecord, now: datetime) -> str:
    if job.state == "failed":
        return f"{job.job} has failed: {job.error}"
    where = f"process {job.pid} on {job.host}"
    return f"{job.job} has died: no sign of life of {where} for {duration(job.silent_s(now))}"


def _stands_still(chain: Chain, job: JobRecord | None, stream_until_us: int, now: datetime) -> bool:
    """Tells whether the stream has a further window that is not committed although it has been time enough."""
    window, silent_s = chain.window, chain.silent_s(now)
    # Before the first commit nothing says how long a window takes; an incomplete window is not due yet.
    if window is None or silent_s is None or window.end_us + (window.end_us - window.start_us) > stream_until_us:
        return False
    patience_s = max(_PATIENCE_S, _SLOW * (chain.interval_s or 0.0))
    if job is not None and job.state in LIVE:
        # It may have been started a moment ago, or be in the middle of a window that takes longer than others.
        for moment in filter(None, (job.started, job.moved)):
            silent_s = min(silent_s, (now - datetime.fromisoformat(moment)).total_seconds())
    return silent_s > patience_s


def _standstill(stage: Stage, chain: Chain, job: JobRecord | None, now: datetime) -> str:
    deed = "trained on" if stage == "train" else "labelled"
    text = f"no further window {deed} for {duration(chain.silent_s(now) or 0.0)}, after window {chain.window}"
    if chain.interval_s:
        text += f" (usually every {duration(chain.interval_s)})"
    if job is None:
        return f"{text}; no job of this folder does it"
    if job.state == "waiting":
        return f"{text}; {job.job} waits for {job.waiting_for}"
    if job.state in LIVE:
        return f"{text}; {job.job} is running"
    return f"{text}; {job.job} has ended ({job.state})"


def duration(seconds: float) -> str:
    """Writes a time with its largest unit; a time in the future, by another machine's clock, as 0."""
    seconds = max(0.0, seconds)
    # A unit from two of it on: rounded, 90 minutes would be 2 hours.
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
