"""Which windows a job does next, and what they wait for. The first process decides, and tells the others.

The order of windows is their time. A stage does the windows after its newest committed one; whatever lies before is
committed, was empty when it was passed, or has come too late (``late_rows``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from exfm.config.loading import Experiment
from exfm.data.windows import WindowGrid, windows_with_events
from exfm.errors import RunError
from exfm.interfaces.data_source import StreamPart, TimeRange, Window
from exfm.interfaces.duration import microseconds
from exfm.interfaces.process_group import ProcessGroup
from exfm.scheduling.late_rows import overlaps
from exfm.storage.commits import NONE, CommitLog, Stage


@dataclass(frozen=True)
class WindowWork:
    """A window, and who has to do it.

    Attributes:
        stages, labellers: their names.
        only: names of the stream's parts that are read, where the window was committed before and is done again from
            an older snapshot: rows that have come since are not among those that its commit counts. None for all.
        missed: windows by stage that other models have trained on and that are in the stream no more.
    """

    window: Window
    stages: tuple[str, ...]
    labellers: tuple[str, ...]
    only: tuple[str, ...] | None = None
    missed: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True)
class StreamState:
    """The stream as a job finds it when it looks for windows to do.

    Attributes:
        grid: how the run counts its windows.
        span: the time for which the stream is complete.
        parts: those that it consists of.
        bound: whether the run's folder had been bound to an experiment before.
    """

    grid: WindowGrid
    span: TimeRange
    parts: Sequence[StreamPart]
    bound: bool

    def versions(self, work: WindowWork) -> dict[str, str]:
        """Gives the versions of the parts that a window is read from, by name."""
        here = {part.name: part.version for part in self.parts if overlaps(part, work.window)}
        return here if work.only is None else {name: here[name] for name in here if name in work.only}


class Schedule:
    """Finds the windows to do, in order.

    Args:
        state: the stream.
        complete_windows_only: leave out a last window that more rows may still come for.
    """

    def __init__(
        self,
        experiment: Experiment,
        log: CommitLog,
        process_group: ProcessGroup,
        state: StreamState,
        complete_windows_only: bool,
    ) -> None:
        self.state = state
        self.grid = state.grid
        self.span = state.span
        self._experiment = experiment
        self._log = log
        self._process_group = process_group
        self._complete_only = complete_windows_only
        trained = {task for arm in experiment.arms for task in arm.tasks}
        delays = {microseconds(label.delay) for label in experiment.schema.labels if label.name in trained}
        self._delays_us = tuple(sorted(delays - {0}))

    @property
    def count(self) -> int:
        """How many windows the stream spans, empty ones included, from the run's first."""
        return self.grid.index_at(max(self.span.end_us - 1, self.grid.origin_us)) + 1

    @property
    def incomplete(self) -> Window | None:
        """The last window, where it is left out because more rows of it may still come."""
        last = self.grid.window(self.count - 1)
        return last if self._complete_only and last.end_us > self.span.end_us else None

    def after(self, index: int) -> Iterator[Window]:
        """Yields the windows in which something happens after that of an index; for the first process alone."""
        start_us = max(self.span.start_us, self.grid.window(index + 1).start_us)
        rest = TimeRange(start_us, self.span.end_us)
        for window in windows_with_events(self._experiment.source, self.grid, rest, self._delays_us):
            if self._complete_only and window.end_us > self.span.end_us:
                return
            yield window

    def reopen(self, stages: Sequence[str], labellers: Sequence[str]) -> list[str]:
        """Takes back the newest commits whose window was incomplete, where it has got more rows since.

        The window is then done again as a whole, from the snapshot before it. Where rows that it was read from are in
        the stream no more, the commit stands. For the first process alone.

        Returns:
            The names of the models that go back by a window.
        """
        reopened = [name for name in labellers if self._reopens("supervise", name)]
        for name in reopened:
            self._log.remove_head("supervise", name)
        for name in reversed(stages):  # students before their teachers: a kill in between leaves no student ahead
            trained, supervised = self._log.head("train", name), self._log.head("supervise", name)
            ahead = name not in labellers and supervised > trained and self._reopens("supervise", name)
            again = self._reopens("train", name)
            if ahead or (again and supervised == trained and name not in labellers):
                self._log.remove_head("supervise", name)
            if again:
                self._log.remove_head("train", name)
                reopened.append(name)
        return reopened

    def _reopens(self, stage: Stage, name: str) -> bool:
        head = self._log.head(stage, name)
        if head == NONE:
            return False
        commit = self._log.load(stage, name, head)
        until_us = commit.read.until_us
        if until_us is None or not commit.is_incomplete or until_us >= self.span.end_us:
            return False
        following_us = self._experiment.source.next_event_us(until_us)
        if following_us is None or following_us >= min(commit.window.end_us, self.span.end_us):
            return False
        return commit.read.parts.keys() <= {part.name for part in self.state.parts}

    def has_work(self, index: int) -> bool:
        """Whether a window is to be done after that of an index; the same on every process."""
        return bool(
            self._process_group.broadcast(
                self._process_group.is_rank_zero and next(self.after(index), None) is not None
            )
        )

    def work(self, stages: Mapping[str, int], labellers: Mapping[str, int]) -> Iterator[WindowWork]:
        """Yields what is to be done, in order; the same on every process.

        Args:
            stages, labellers: the newest window that each has done, by name.
        """
        done = {"stages": dict(stages), "labellers": dict(labellers)}
        behind = [*stages.values(), *labellers.values()]
        windows = self.after(min(behind)) if behind and self._process_group.is_rank_zero else iter(())
        while True:
            window = next(windows, None)
            data = self._process_group.broadcast_bytes(b"" if window is None else _encode(self._work(window, **done)))
            if not data:
                return
            work = _decode(data)
            for name in work.stages:
                done["stages"][name] = work.window.index
            yield work

    def _work(self, window: Window, stages: Mapping[str, int], labellers: Mapping[str, int]) -> WindowWork:
        behind = {
            name: done for name, done in stages.items() if done < window.index and self._takes(name, done, window)
        }
        only = None
        for name in behind:
            if window.index <= self._heads[name]:
                only = tuple(self._log.load("train", name, window.index).read.parts) or None
            elif window.index == self._supervised_heads[name]:  # a kill came between its two manifests
                only = tuple(self._log.load("supervise", name, window.index).read.parts) or None
        missed = {name: passed for name, done in behind.items() if (passed := self._missed(name, done, window))}
        labelling = tuple(name for name, done in labellers.items() if done < window.index)
        return WindowWork(window, tuple(behind), labelling, only, missed)

    @cached_property
    def _heads(self) -> dict[str, int]:
        """Each model's newest committed window as the job begins."""
        return {arm.name: self._log.head("train", arm.name) for arm in self._experiment.arms}

    @cached_property
    def _supervised_heads(self) -> dict[str, int]:
        """Each undelayed model's newest window with supervision, which it commits before the window itself."""
        return {
            arm.name: NONE if arm.config.supervision.delay else self._log.head("supervise", arm.name)
            for arm in self._experiment.arms
        }

    def _takes(self, name: str, done: int, window: Window) -> bool:
        """Whether a stage does a window: one that it goes through again must be one that it had committed.

        Raises:
            RunError: a window that it had committed after its newest readable snapshot is no more in the stream.
        """
        if done >= self._heads[name]:
            return True
        chain = self._log.windows("train", name)
        gone = next((index for index in chain if done < index < window.index), None)
        if gone is not None:
            url = self._log.workspace.url
            raise RunError(
                f"{url}: {name!r} goes on from its snapshot after window {done}, because later ones cannot be read, "
                f"and window {self.grid.window(gone)} is in the stream no more. Put its rows back, or go back to what "
                f"can be read with `exfm repair {url}`"
            )
        return window.index > self._heads[name] or window.index in chain

    def _missed(self, name: str, done: int, window: Window) -> list[int]:
        """Windows between a stage's last and this one that another model of the run has trained on."""
        if window.index == done + 1:
            return []
        others = [arm.name for arm in self._experiment.arms if arm.name != name]
        passed: set[int] = set()
        for other in others:
            for index in self._log.newest_first("train", other):
                if index <= done:
                    break
                if index < window.index and self._log.load("train", other, index).files:
                    passed.add(index)
        return sorted(passed)

    def missing(self, work: WindowWork, teachers: Mapping[str, Sequence[str]], made_here: set[str]) -> str:
        """Says what a window needs that is not there yet; nothing where it can be done. For the first process alone.

        Args:
            teachers: those of each stage, by its name, that store their supervision in this run.
            made_here: the teachers that supervise the window in this job.
        """
        for stage in work.stages:
            for teacher in teachers[stage]:
                if teacher not in made_here and not self._supervised(teacher, work.window):
                    return f"the supervision of {teacher!r} for window {work.window}"
        for labeller in work.labellers:
            behind = self._untrained(labeller, work.window)
            if behind is not None:
                return f"the snapshot of {labeller!r} after window {behind}"
        return ""

    def _supervised(self, teacher: str, window: Window) -> bool:
        """Whether a teacher has supervised a window, or has passed it because it had no rows then."""
        if self._log.has("supervise", teacher, window.index):
            # The teacher had committed the windows before: their snapshots are asked for by name.
            self._log.note_head("train", teacher, self._log.load("supervise", teacher, window.index).previous)
            return True
        return self._log.head("supervise", teacher) > window.index

    def _untrained(self, teacher: str, window: Window) -> Window | None:
        """The next window that a teacher has to train on before its snapshots can label a window."""
        delay_us = microseconds(self._experiment.config.models[teacher].supervision.delay)
        head = self._log.head("train", teacher)
        for following in self.after(head):
            if following.end_us > window.start_us - delay_us:
                return None
            if not self._log.has("train", teacher, following.index):
                return following
        return None


def _encode(work: WindowWork) -> bytes:
    return json.dumps(asdict(work)).encode()


def _decode(data: bytes) -> WindowWork:
    raw: dict[str, Any] = json.loads(data)
    only = None if raw["only"] is None else tuple(raw["only"])
    return WindowWork(Window(**raw["window"]), tuple(raw["stages"]), tuple(raw["labellers"]), only, raw["missed"])
