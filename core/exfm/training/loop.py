"""The stream loop: window by window, chunk by chunk, teachers before students.

In every window, for every chunk of rows: each teacher supervises it (with its own forward pass, or with an earlier
snapshot), each student joins that supervision, predicts, and then trains. At the window's end each stage commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.data.stream import ChunkReader, windows_of
from exfm.interfaces.data_source import TimeRange, Window
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.supervision.external import ExternalSupervision
from exfm.supervision.joiner import Joiner
from exfm.supervision.store import Store
from exfm.supervision.streaming import SupervisionStream
from exfm.training.building import teacher_shapes
from exfm.training.ended_window import EndedWindow
from exfm.training.labeller import Labeller
from exfm.training.saving import Saving
from exfm.training.sharing import Sharing
from exfm.training.spread import SpreadChunk, check_spread, read_spread
from exfm.training.stage import Stage
from exfm.training.teachers import external_teachers
from exfm.training.trainer import Trainer

NOW = timedelta(0)


@dataclass(frozen=True)
class Progress:
    """What a caller is told after every chunk.

    Attributes:
        window: the window in work, one of ``windows`` in all.
        rows: rows of the chunk.
        ne: NE of each model's first task in this window so far.
    """

    window: Window
    windows: int
    rows: int
    ne: Mapping[str, float | None]


@dataclass
class Clock:
    """Where the time of a run goes, in seconds."""

    started: float = field(default_factory=time.perf_counter)
    first_batch: float | None = None
    data: float = 0.0
    train: float = 0.0
    supervise: float = 0.0
    commit: float = 0.0

    def since_start(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.started

    def as_dict(self) -> dict[str, float | None]:
        """The `time` section of results.json; effective training time is the share spent on learning from new data."""
        total = self.since_start()
        return {
            "total_s": round(total, 3),
            "time_to_first_batch_s": None if self.first_batch is None else round(self.first_batch, 3),
            "data_s": round(self.data, 3),
            "train_s": round(self.train, 3),
            "supervise_s": round(self.supervise, 3),
            "commit_s": round(self.commit, 3),
            "effective_training_time": round(self.train / total, 4),
        }


class StreamLoop:
    """Runs stages of an experiment over the windows that they have not committed yet.

    Args:
        store: the run's folder.
        plan: how models are placed.
        on_progress: called after every chunk.
        train: the arms to train; all by default.
        label: the teachers to label for, of those with a delay; all by default.

    With a plan of several processes each of them makes this loop, and calls it in the same order.

    Attributes:
        waiting_for: why ``advance`` stopped before the end of the stream; empty where it did not.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        plan: ParallelPlan,
        on_progress: Callable[[Progress], None],
        train: Collection[str] | None = None,
        label: Collection[str] | None = None,
    ) -> None:
        self.experiment = experiment
        self.store = store
        self.ranks = plan.ranks
        check_spread(experiment, self.ranks)
        self.on_progress = on_progress
        self.clock = Clock()
        self.late = _late_tasks(experiment)
        self.waiting_for = ""
        arms, schema = experiment.arms, experiment.schema
        self._shapes = teacher_shapes(experiment)
        sharing = Sharing(experiment, store)
        prompt = tuple(label.name for label in schema.labels if label.delay == NOW)
        students = {arm.name: tuple(s.name for s in arms if arm.name in s.teachers) for arm in arms}
        self.stages = [
            Stage(self._trainer(arm, plan), store, schema, prompt, bool(students[arm.name]), sharing)
            for arm in arms
            if train is None or arm.name in train
        ]
        self.labellers = [
            Labeller(self._trainer(arm, plan), store, students[arm.name])
            for arm in arms
            if students[arm.name] and arm.config.supervision.delay > NOW and (label is None or arm.name in label)
        ]
        read_back = bool(self.labellers) or any(sharing.borrowers.values())
        self.saving = Saving(experiment.config.save_in_background and not read_back)
        self._done: dict[str, set[int]] = {}  # of the stages that have been brought to their last state
        where = {arm.name: arm.config.where for arm in arms}
        self.reader = ChunkReader(experiment.source, schema, experiment.config.stream, where, plan.shard)

    def _trainer(self, arm: Arm, plan: ParallelPlan) -> Trainer:
        return Trainer(arm, self.experiment.schema, self._shapes, plan, self.experiment.config.seed)

    @cached_property
    def external(self) -> dict[str, ExternalSupervision]:
        """The supervision from elsewhere that the stages use."""
        used = {teacher for stage in self.stages for teacher in stage.trainer.arm.teachers}
        return external_teachers(self.experiment, used)

    def advance(self, complete_windows_only: bool = False) -> int:
        """Does the windows in order until one lacks its teachers' supervision or snapshots; returns how many.

        Args:
            complete_windows_only: leave out a last window that more rows may still come for.
        """
        span = self.experiment.source.time_range()
        span = TimeRange(self.ranks.agree(span.start_us), self.ranks.agree(span.end_us))
        windows = list(windows_of(span, self.experiment.config.stream.window))
        complete = [window for window in windows if window.end_us <= span.end_us or not complete_windows_only]
        self._resume({window.index for window in complete})
        labelled = {one.name: set(self.store.log.windows("supervise", one.name)) for one in self.labellers}
        todo = [(window, *self._to_do(window, labelled)) for window in complete]
        todo = [(window, stages, labellers) for window, stages, labellers in todo if stages or labellers]
        count = 0
        self.waiting_for = ""
        try:
            for window, stages, labellers in todo:
                missing = self._missing(window, windows, stages, labellers)
                if self.ranks.agree(bool(missing)):
                    self.waiting_for = missing or f"what is missing for window {window}"
                    break
                count += 1
                following = todo[count][0] if count < len(todo) else None
                self._window(window, stages, labellers, span, len(windows), following)
                for stage in stages:
                    self._done[stage.name].add(window.index)
        finally:
            self.reader.close()
        start = time.perf_counter()
        self.saving.wait()
        self.ranks.wait()
        self.clock.commit += time.perf_counter() - start
        return count

    def _resume(self, windows: set[int]) -> None:
        """The first time a stage has windows to do, brings its model to its last committed state."""
        for stage in self.stages:
            if stage.name in self._done:
                continue
            done = set(self.store.log.windows("train", stage.name))
            if windows <= done:
                continue
            version = stage.resume()
            later = {index for index in done if index > version}
            self._done[stage.name] = done - {i for i in later if self.store.log.load("train", stage.name, i).files}

    def _to_do(self, window: Window, labelled: Mapping[str, set[int]]) -> tuple[list[Stage], list[Labeller]]:
        """The stages that have not committed a window, and the labellers that have not labelled it."""
        stages = [s for s in self.stages if s.name in self._done and window.index not in self._done[s.name]]
        return stages, [one for one in self.labellers if window.index not in labelled[one.name]]

    def _missing(self, window: Window, windows: list[Window], stages: list[Stage], labellers: list[Labeller]) -> str:
        """What a window needs that is not there yet, in words; nothing where it can be done."""
        log = self.store.log
        made_here = {stage.name for stage in stages if stage.supervises} | {one.name for one in labellers}
        for stage in stages:
            for teacher in stage.trainer.arm.teachers:
                external = teacher in self.experiment.config.teachers
                if not external and teacher not in made_here and not log.has("supervise", teacher, window.index):
                    return f"the supervision of {teacher!r} for window {window}"
        for labeller in labellers:
            limit_us = window.end_us - labeller.delay_us
            wanted = [earlier for earlier in windows if earlier.end_us <= limit_us and earlier.index < window.index]
            if wanted and not log.has("train", labeller.name, wanted[-1].index):
                return f"the snapshot of {labeller.name!r} after window {wanted[-1]}"
        return ""

    def _window(
        self,
        window: Window,
        stages: list[Stage],
        labellers: list[Labeller],
        span: TimeRange,
        count: int,
        following: Window | None,
    ) -> None:
        streams: dict[str, SupervisionStream] = {}
        begun: list[Stage | Labeller] = []
        try:
            self._open_supervision(window, stages, labellers, streams)
            for labeller in labellers:
                labeller.begin(window)
                begun.append(labeller)
            for stage in stages:
                stage.begin(window)
                begun.append(stage)
            rows = 0
            for chunk in self._timed(read_spread(self.reader, window, self.ranks)):
                rows += chunk.size
                self._chunk(chunk, labellers, stages, streams)
                self.on_progress(
                    Progress(window, count, chunk.size, {stage.name: stage.counters.ne for stage in stages})
                )
            skipped = self.reader.skipped
            rows += self._late_labels(window, stages, span)
            if following is not None:  # its first rows are read while this window is committed
                self.reader.begin(following)
            start = time.perf_counter()
            for labeller in labellers:
                labeller.commit(rows)
            self.saving.wait()
            self.saving.do(self._ended(stages, rows, skipped))
            if not self.saving.background:
                self.ranks.wait()  # until the first process has stored what the others may now read
            self.clock.commit += time.perf_counter() - start
        finally:
            for part in (*begun, *streams.values()):
                part.close()

    def _ended(self, stages: list[Stage], rows: int, skipped: int) -> list[EndedWindow]:
        """What is to be written of a window: of all stages, or of none where the model of one has diverged."""
        ended: list[EndedWindow] = []
        try:
            for stage in stages:
                one = stage.commit(rows, skipped, self.saving.background)
                ended += [] if one is None else [one]
        except BaseException:
            for one in ended:
                one.discard()
            raise
        return ended

    def _open_supervision(
        self, window: Window, stages: list[Stage], labellers: list[Labeller], streams: dict[str, SupervisionStream]
    ) -> None:
        """Opens what other jobs, or this one before an interruption, have supervised of the window."""
        made_here = {stage.name for stage in stages if stage.supervises} | {one.name for one in labellers}
        needed = {teacher for stage in stages for teacher in stage.trainer.arm.teachers} - made_here
        for teacher in needed - self.external.keys():
            stream = self.store.supervision(teacher, window)
            if stream is not None:
                streams[teacher] = stream

    def _chunk(
        self,
        chunk: SpreadChunk,
        labellers: list[Labeller],
        stages: list[Stage],
        streams: Mapping[str, SupervisionStream],
    ) -> None:
        start = time.perf_counter()
        teachers: dict[str, Joiner] = dict(self.external)
        for name, stream in streams.items():
            teachers[name] = stream.between(chunk.first_us, chunk.last_us)
        for labeller in labellers:
            teachers[labeller.name] = labeller.label(chunk).index()
        labelled = time.perf_counter()
        for stage in stages:
            made = stage.consume(chunk, teachers)
            if stage.supervises:
                teachers[stage.name] = made.index()
            if self.clock.first_batch is None:
                self.clock.first_batch = self.clock.since_start()
        self.clock.supervise += labelled - start
        self.clock.train += time.perf_counter() - labelled

    def _late_labels(self, window: Window, stages: list[Stage], span: TimeRange) -> int:
        """Trains on the labels that became known during the window: those of events a label's delay earlier."""
        rows = 0
        for delay, tasks in self.late.items():
            shift = int(delay.total_seconds() * 1e6)
            earlier = Window(window.index, max(window.start_us - shift, span.start_us), window.end_us - shift)
            if earlier.start_us >= earlier.end_us:
                continue
            for chunk in self._timed(read_spread(self.reader, earlier, self.ranks)):
                start = time.perf_counter()
                rows += chunk.size
                for stage in stages:
                    stage.consume_late(chunk, tasks)
                self.clock.train += time.perf_counter() - start
        return rows

    def _timed(self, chunks: Iterator[SpreadChunk]) -> Iterator[SpreadChunk]:
        """The same chunks; the time spent waiting for them counts as data time."""
        while True:
            start = time.perf_counter()
            chunk = next(chunks, None)
            self.clock.data += time.perf_counter() - start
            if chunk is None:
                return
            yield chunk


def _late_tasks(experiment: Experiment) -> dict[timedelta, tuple[str, ...]]:
    """Tasks by the delay of their labels, those without delay left out."""
    trained = {task for arm in experiment.arms for task in arm.tasks}
    late: dict[timedelta, tuple[str, ...]] = {}
    for label in experiment.schema.labels:
        if label.delay > NOW and label.name in trained:
            late[label.delay] = (*late.get(label.delay, ()), label.name)
    return late
