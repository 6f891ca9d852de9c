"""Keeps the jobs of a fleet up: starts each, starts it again where it fails, and stops all at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from exfm.interfaces.launcher import Fleet, Job, Launcher, RunningJob, RunsAlreadyError
from exfm.launch.log_lines import last_line

_POLL_S = 0.2
_LOOK_AGAIN_S = 1.0
"""Time until a job that another process runs is tried again."""

_LONGEST_WAIT_S = 60.0
_MOST_DOUBLINGS = 6  # of a second, which is beyond the longest wait; the power of thousands of failures is no float
_HEALTHY_S = 600.0
"""A job that has run for so long before it failed has not failed in a row."""

_PATIENCE_S = 20.0
"""Time that jobs have to end when they are asked to: a job takes ten seconds at most for its chunk."""

_WRONG_INPUT = 2  # exit status of a job whose file or data are wrong: another try would end in the same way


@dataclass
class _Kept:
    """Follows a job from its start to its end.

    Attributes:
        not_before: time of the next attempt.
        started: time of the last start.
        ended: time of the end, where the outcome is known.
        elsewhere: whether another process runs it.
    """

    job: Job
    running: RunningJob | None = None
    not_before: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    failures: int = 0
    elsewhere: bool = False
    outcome: Literal["", "done", "failed"] = ""


class Keeper:
    """Brings the jobs of a fleet up by a launcher, and keeps them up.

    Args:
        restarts: how many times in a row a failed job is started again.
        say: called with a line for the user at each start and end.
    """

    def __init__(self, launcher: Launcher, fleet: Fleet, restarts: int, say: Callable[[str], None]) -> None:
        self.launcher = launcher
        self.fleet = fleet
        self.restarts = restarts
        self.say = say
        self._kept = {job.name: _Kept(job) for job in fleet.jobs}

    def run(self) -> list[str]:
        """Keeps the jobs up until all have ended; on an interruption it stops them.

        Returns:
            The names of the jobs that have failed for good, or wait for those.
        """
        self.launcher.open(self.fleet)
        try:
            while not all(kept.outcome for kept in self._kept.values()):
                for kept in self._kept.values():
                    if kept.running is not None:
                        self._look_at(kept, kept.running)
                    elif not kept.outcome:
                        self._try(kept)
                time.sleep(_POLL_S)
        finally:
            try:
                self._stop()
            finally:
                # After the jobs, because a launcher may need the connection that it closes here to stop them.
                self.launcher.close()
        return [name for name, kept in self._kept.items() if kept.outcome == "failed"]

    def _try(self, kept: _Kept) -> None:
        """Starts a job if it is due, if there is room, and if nobody else runs it."""
        now = time.monotonic()
        awaited = self._awaited(kept)
        # A job that follows starts at once, because it waits for its input by itself.
        if now < kept.not_before or not (kept.job.follows or all(other.outcome for other in awaited)):
            return
        # The input will never be complete, and the job would take the files so far for the whole.
        if not kept.job.follows and any(other.outcome == "failed" for other in awaited):
            self._give_up(kept)
            return
        # Asked again at the next look, because room comes when another job ends.
        if not self.launcher.has_room(kept.job, [other.job for other in self._kept.values() if other.running]):
            return
        try:
            kept.running = self.launcher.start(kept.job)
        except RunsAlreadyError as error:
            self._leave_alone(kept, error, _LOOK_AGAIN_S)
            return
        # The time before the start, because ``_settle`` must not take a job for done that missed a last file.
        kept.elsewhere, kept.started = False, now
        self.say(f"{kept.job.name}: started ({kept.running.location})")

    def _leave_alone(self, kept: _Kept, error: RunsAlreadyError, wait_s: float) -> None:
        """Tries a job again later that another process runs, and says so once."""
        kept.running, kept.not_before = None, time.monotonic() + wait_s
        if not kept.elsewhere:
            self.say(f"{error}; it is left alone, and started here when that has ended")
        kept.elsewhere = True

    def _look_at(self, kept: _Kept, running: RunningJob) -> None:
        """Decides whether a job that has ended is done, is started again, or is given up."""
        try:
            status = running.poll()
        except RunsAlreadyError as error:
            # Longer than after a refused start, because the engine has queued the job to learn this.
            self._leave_alone(kept, error, _LONGEST_WAIT_S)
            return
        if status is None:
            return
        kept.running = None
        if status == 0:
            self._settle(kept)
            return
        now = time.monotonic()
        kept.failures = 1 if now - kept.started > _HEALTHY_S else kept.failures + 1
        how = f"ended by signal {-status}" if status < 0 else f"ended with status {status}"
        how = f"{kept.job.name}: {how}: {last_line(self.fleet.log_dir, kept.job.name)}"
        if status == _WRONG_INPUT:
            self.say(f"{how}; it is not started again, because its input is wrong")
            self._give_up(kept)
        elif kept.failures > self.restarts:
            self.say(f"{how}; it is not started again after {kept.failures} failures in a row")
            self._give_up(kept)
        else:
            # Doubled each time, so that a passing failure costs a second, and a lasting failure few starts.
            wait_s = min(2.0 ** min(kept.failures - 1, _MOST_DOUBLINGS), _LONGEST_WAIT_S)
            kept.not_before = now + wait_s
            self.say(f"{how}; again in {wait_s:.0f} s ({kept.failures} of {self.restarts})")

    def _settle(self, kept: _Kept) -> None:
        """Decides whether a job that ended by itself is done, which it is if it began after those it waits for ended.

        Otherwise it may have looked for their last files before they wrote them.
        """
        awaited = self._awaited(kept)
        if any(other.outcome == "failed" for other in awaited):
            self._give_up(kept)
        elif all(other.outcome and other.ended <= kept.started for other in awaited):
            kept.outcome, kept.ended = "done", time.monotonic()
            self.say(f"{kept.job.name}: done: {last_line(self.fleet.log_dir, kept.job.name)}")

    def _give_up(self, kept: _Kept) -> None:
        kept.outcome, kept.ended = "failed", time.monotonic()
        failed = [other.job.name for other in self._awaited(kept) if other.outcome == "failed"]
        if failed:
            self.say(f"{kept.job.name}: not done, because it waits for {', '.join(failed)}")

    def _awaited(self, kept: _Kept) -> list[_Kept]:
        return [self._kept[name] for name in kept.job.waits_for]

    def _stop(self) -> None:
        """Asks all running jobs to end, and kills those that do not, or all at a second interruption."""
        running = [kept.running for kept in self._kept.values() if kept.running is not None]
        try:
            for job in running:
                job.stop()
            until = time.monotonic() + _PATIENCE_S
            while _still(running) and time.monotonic() < until:
                time.sleep(_POLL_S)
        finally:
            # After a second interruption too, which ends the wait above: no job may outlive its keeper.
            for job in _still(running):
                job.kill()


def _still(jobs: Sequence[RunningJob]) -> list[RunningJob]:
    """Returns the jobs that still run; one that another process runs is that process's to stop."""
    still: list[RunningJob] = []
    for job in jobs:
        with suppress(RunsAlreadyError):
            if job.poll() is None:
                still.append(job)
    return still
