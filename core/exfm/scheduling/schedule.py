"""Schedules the windows of a job on rank zero, and broadcasts them to the other ranks.

Windows run in the order of time. A stage runs the windows after its newest commit. Rows of earlier windows are
committed already, or have come too late (``late_rows``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from typing import Any

from exfm.config.loading import Experiment
from exfm.config.training_sections import InitFrom
from exfm.data.windows import WindowGrid, windows_with_events
from exfm.errors import ConfigError, RunError
from exfm.interfaces.data_source import StreamPart, TimeRange, Window
from exfm.interfaces.duration import microseconds, microseconds_since_1970
from exfm.interfaces.process_group import ProcessGroup
from exfm.scheduling.late_rows import overlaps
from exfm.storage.aliases import LATEST
from exfm.storage.commits import NONE, Stage
from exfm.storage.snapshot_at import snapshot_at
from exfm.supervision.store import Store, initial_home


@dataclass(frozen=True)
class WindowWork:
    """A window, and the stages and labellers that run it.

    Attributes:
        stages, labellers: by name.
        only: names of the stream's parts that are read; None for all. A window that runs again from an older snapshot
            reads the parts that its commit names, because the commit does not count rows that have come since.
        missed: windows by stage that other models have trained on and that are in the stream no more.
    """

    window: Window
    stages: tuple[str, ...]
    labellers: tuple[str, ...]
    only: tuple[str, ...] | None = None
    missed: Mapping[str, Sequence[int]] | None = None


@dataclass(frozen=True)
class StreamState:
    """Describes the stream at the time when a job schedules its windows.

    Attributes:
        grid: the run's windows.
        span: the time for which the stream is complete.
        parts: all parts of the stream.
        bound: whether the run's folder was bound to an experiment.
    """

    grid: WindowGrid
    span: TimeRange
    parts: Sequence[StreamPart]
    bound: bool

    def versions(self, work: WindowWork) -> dict[str, str]:
        """Returns the versions of the parts that a window is read from, by name."""
        versions: dict[str, str] = {}
        for stream_part in self.parts:
            if overlaps(stream_part, work.window) and (work.only is None or stream_part.name in work.only):
                versions[stream_part.name] = stream_part.version
        return versions


class Schedule:
    """Yields the windows to run, in order.

    Args:
        state: the stream.
        complete_windows_only: leave out a last window that more rows may still come for.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        process_group: ProcessGroup,
        state: StreamState,
        complete_windows_only: bool,
    ) -> None:
        self.state = state
        self.grid = state.grid
        self.span = state.span
        self._experiment = experiment
        self._store = store
        self._log = store.log
        self._process_group = process_group
        self._complete_only = complete_windows_only
        lateness_us = microseconds(experiment.config.stream.allowed_lateness)
        self._complete_us = state.span.end_us - lateness_us if complete_windows_only else sys.maxsize
        self._teacher_configs = {arm.name: arm.config for arm in (*experiment.arms, *experiment.lent_arms)}
        self._standing: dict[str, int] = {}
        trained = experiment.trained_tasks
        delays = {microseconds(label.delay) for label in experiment.schema.labels if label.name in trained}
        self._delays_us = tuple(sorted(delays - {0}))

    @property
    def count(self) -> int:
        """Counts the windows that the stream spans from the run's first, including windows without rows."""
        return self.grid.index_at(max(self.span.end_us - 1, self.grid.origin_us)) + 1

    @property
    def incomplete(self) -> Window | None:
        """Returns the first window that is left out because more rows of it may still come."""
        if not self._complete_only:
            return None
        window = self.grid.window(self.grid.index_at(max(self._complete_us, self.grid.origin_us)))
        return window if window.start_us < self.span.end_us else None

    def end_of_first(self, count: int) -> int:
        """Returns the start of the window after the stream's first ``count`` windows with rows; on rank zero only.

        The end of the stream, if it has no more than these.
        """
        windows = windows_with_events(self._experiment.source, self.grid, self.span)
        following = next(islice(windows, count, None), None)
        return self.span.end_us if following is None else following.start_us

    def after(self, index: int) -> Iterator[Window]:
        """Yields the windows after an index that hold events or late labels; on rank zero only."""
        start_us = max(self.span.start_us, self.grid.window(index + 1).start_us)
        remaining = TimeRange(start_us, self.span.end_us)
        for window in windows_with_events(self._experiment.source, self.grid, remaining, self._delays_us):
            if window.end_us > self._complete_us:
                return
            yield window

    def before_start(self, name: str) -> int:
        """Returns the index of the last window before a model's start; ``NONE`` for a model that has all windows.

        A model that starts from another without saying when starts where that one stands, and a frozen teacher with
        the first of its students.
        """
        if name in self._experiment.frozen:
            students = [arm.name for arm in self._experiment.arms if name in arm.teachers]
            return min((self.before_start(student) for student in students), default=NONE)
        config = self._teacher_configs[name]
        if config.start is not None:
            return max(NONE, self.grid.index_at(microseconds_since_1970(config.start) - 1))
        if config.init_from is None or config.init_from.path:
            return NONE
        return self._stands_at(name, config.init_from)

    def _stands_at(self, name: str, config: InitFrom) -> int:
        """Returns the window of the newest snapshot of the model that a new model starts from."""
        if name not in self._standing:
            self._standing[name] = NONE
            # A model with commits has started, and goes on after them.
            if self._log.head("train", name) == NONE:
                home = initial_home(self._store, config)
                stands_at = snapshot_at(home.store.snapshots, home.model, config.at or LATEST)
                self._standing[name] = max(NONE, self.grid.index_at(stands_at.watermark_us - 1))
        return self._standing[name]

    def reopen(self, stages: Sequence[str], labellers: Sequence[str]) -> list[str]:
        """Removes the newest commits whose window was incomplete and has more rows or labels; on rank zero only.

        The whole window then runs again, from the snapshot before it. The commit stands if a part of the stream that it
        was read from is gone.

        Returns:
            The names of the models whose commit was removed.
        """
        reopened: list[str] = []
        for name in labellers:
            stored_as = self._store.home(name).model
            if self._reopens("supervise", stored_as):
                self._log.remove_head("supervise", stored_as)
                reopened.append(name)
        # Students before their teachers, so that a kill in between leaves no student ahead of its teacher.
        for name in reversed(stages):
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
        """Returns whether the newest commit of a model is to be removed."""
        head = self._log.head(stage, name)
        if head == NONE:
            return False
        commit = self._log.load(stage, name, head)
        until_us = commit.read.until_us
        if until_us is None or not commit.is_incomplete or until_us >= self.span.end_us:
            return False
        end_us = min(commit.window.end_us, self.span.end_us)
        # Labels that arrived in the rest of the window were not known when it ran, and no later window reads them.
        delays_us = (0, *self._label_delays_us(name)) if stage == "train" else (0,)
        if not any(self._has_event(until_us - delay_us, end_us - delay_us) for delay_us in delays_us):
            return False
        present = {stream_part.name for stream_part in self.state.parts}
        return commit.read.parts.keys() <= present

    def _label_delays_us(self, name: str) -> set[int]:
        """Returns the delays of the labels that a model learns late."""
        tasks: set[str] = set()
        for arm in self._experiment.arms:
            if arm.name == name:
                tasks.update(arm.tasks)
        return {microseconds(label.delay) for label in self._experiment.schema.labels if label.name in tasks} - {0}

    def _has_event(self, start_us: int, end_us: int) -> bool:
        event_us = self._experiment.source.next_event_us(start_us)
        return event_us is not None and event_us < end_us

    def has_work(self, index: int) -> bool:
        """Returns whether a window is to be run after an index; the same on every process."""
        any_left = self._process_group.is_rank_zero and next(self.after(index), None) is not None
        return bool(self._process_group.broadcast(any_left))

    def work(self, stages: Mapping[str, int], labellers: Mapping[str, int]) -> Iterator[WindowWork]:
        """Yields the windows to run, in order; the same on every process.

        Args:
            stages, labellers: index of the newest window that each has done, by name.
        """
        done = {"stages": dict(stages), "labellers": dict(labellers)}
        behind = [*stages.values(), *labellers.values()]
        windows = self.after(min(behind)) if behind and self._process_group.is_rank_zero else iter(())
        while True:
            encoded = b""  # the end of the stream
            for window in windows:
                planned = self._work(window, **done)
                # A window before the start of every model that has not done it needs nobody.
                if planned.stages or planned.labellers:
                    encoded = _encode(planned)
                    break
            data = self._process_group.broadcast_bytes(encoded)
            if not data:
                return
            work = _decode(data)
            for name in work.stages:
                done["stages"][name] = work.window.index
            yield work

    def _work(self, window: Window, stages: Mapping[str, int], labellers: Mapping[str, int]) -> WindowWork:
        """Selects the stages and labellers that run a window."""
        behind: dict[str, int] = {}
        for name, done in stages.items():
            if done < window.index and window.index > self.before_start(name) and self._takes(name, done, window):
                behind[name] = done
        only: tuple[str, ...] | None = None
        missed: dict[str, Sequence[int]] = {}
        for name, done in behind.items():
            if window.index <= self._heads[name]:
                only = tuple(self._log.load("train", name, window.index).read.parts) or None
            elif window.index == self._supervised_heads[name]:
                # A kill came between the two manifests of the window: it must read the parts of the first.
                only = tuple(self._log.load("supervise", name, window.index).read.parts) or None
            passed = self._missed(name, done, window)
            if passed:
                missed[name] = passed
        labelling = tuple(
            name for name, done in labellers.items() if done < window.index and window.index > self.before_start(name)
        )
        return WindowWork(window, tuple(behind), labelling, only, missed)

    @cached_property
    def _heads(self) -> dict[str, int]:
        """Returns each model's newest committed window, as the job begins."""
        # Cached, because the log moves on while the job compares windows with its beginning.
        return {arm.name: self._log.head("train", arm.name) for arm in self._experiment.arms}

    @cached_property
    def _supervised_heads(self) -> dict[str, int]:
        """Returns the newest window with supervision of each model without a delay, ``NONE`` for others.

        Such a model commits the supervision of a window before its predictions.
        """
        heads: dict[str, int] = {}
        for arm in self._experiment.arms:
            heads[arm.name] = NONE
            if not arm.config.supervision.delay:
                heads[arm.name] = self._log.head("supervise", arm.name)
        return heads

    def _takes(self, name: str, done: int, window: Window) -> bool:
        """Returns whether a stage runs a window, which it must have committed if it goes through the stream again.

        Raises:
            RunError: a window that the stage had committed after its newest readable snapshot is gone from the stream.
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
        """Returns the windows between a stage's last and this window that another model of the run has trained on."""
        done = max(done, self.before_start(name))
        if window.index == done + 1:
            return []
        others = [arm.name for arm in self._experiment.arms if arm.name != name]
        passed: set[int] = set()
        for other in others:
            for index in self._log.newest_first("train", other):
                if index <= done:
                    break
                # A manifest without files is of a window without rows, of which nothing was missed.
                if index < window.index and self._log.load("train", other, index).files:
                    passed.add(index)
        return sorted(passed)

    def missing(self, work: WindowWork, teachers: Mapping[str, Sequence[str]], supervising: set[str]) -> str:
        """Names the supervision or snapshot that a window waits for; empty if it can run. On rank zero only.

        Args:
            teachers: by stage, names of the teachers that store their supervision in this run.
            supervising: the teachers that supervise the window in this job.
        """
        for stage in work.stages:
            for teacher in teachers[stage]:
                if teacher not in supervising and not self._supervised(teacher, work.window):
                    return f"the supervision of {teacher!r} for window {work.window}"
        for labeller in work.labellers:
            if labeller in self._experiment.frozen:
                continue  # its snapshot was there before the run began
            behind = self._untrained(labeller, work.window)
            if behind is not None:
                return f"the snapshot of {labeller!r} after window {behind}"
        return ""

    def _supervised(self, teacher: str, window: Window) -> bool:
        """Returns whether a teacher has supervised a window, or has passed it because it had no rows then."""
        home = self._store.home(teacher)
        log = home.store.log
        if log.has("supervise", home.model, window.index):
            # The teacher had committed the windows before: their snapshots are asked for by name.
            log.note_head("train", home.model, log.load("supervise", home.model, window.index).previous)
            return True
        if home.store.backfills.has(home.model, window.index) or log.head("supervise", home.model) > window.index:
            return True
        self._check_stored(teacher, window)
        return False

    def _check_stored(self, teacher: str, window: Window) -> None:
        """Checks that a teacher without a delay may still supervise a window.

        Raises:
            ConfigError: it has trained on the window and stored nothing, because nobody learned from it then.
        """
        if teacher in self._experiment.frozen:
            return
        home = self._store.home(teacher)
        delay = self._teacher_configs[teacher].supervision.delay
        if delay or not home.store.log.has("train", home.model, window.index):
            return
        if not home.store.log.load("train", home.model, window.index).files:
            return
        raise ConfigError(
            f"{teacher!r} has trained on window {window} without storing its supervision, because no model learned "
            f"from it then. Let the student begin later with models.STUDENT.start, or label such windows with "
            f"`exfm supervise CONFIG --model {home.model} --backfill FROM..TO`"
        )

    def _untrained(self, teacher: str, window: Window) -> Window | None:
        """Returns the next window that a teacher must train on before its snapshots can label a window."""
        delay_us = microseconds(self._experiment.config.models[teacher].supervision.delay)
        head = max(self._log.head("train", teacher), self.before_start(teacher))
        for following in self.after(head):
            if following.end_us > window.start_us - delay_us:
                return None
            if not self._log.has("train", teacher, following.index):
                return following
        return None


def _encode(work: WindowWork) -> bytes:
    """Encodes a window's work for a broadcast."""
    return json.dumps(asdict(work)).encode()


def _decode(data: bytes) -> WindowWork:
    """Decodes a window's work; JSON has made lists of its tuples."""
    raw: dict[str, Any] = json.loads(data)
    only: tuple[str, ...] | None = None
    if raw["only"] is not None:
        only = tuple(raw["only"])
    return WindowWork(Window(**raw["window"]), tuple(raw["stages"]), tuple(raw["labellers"]), only, raw["missed"])
