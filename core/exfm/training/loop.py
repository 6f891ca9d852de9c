"""The stream loop: window by window, chunk by chunk, teachers before students.

In every window, for every chunk of rows: each teacher supervises it (with its own forward pass, or with an earlier
snapshot), each student joins that supervision, predicts, and then trains. At the window's end each stage commits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from exfm.config.loading import Experiment
from exfm.data.stream import Chunk, ChunkReader, windows_of
from exfm.interfaces.data_source import TimeRange, Window
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.supervision.joiner import SupervisionIndex
from exfm.supervision.store import Store
from exfm.training.labeller import Labeller
from exfm.training.stage import Stage
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
    """Runs an experiment's stages over the windows that are not committed yet.

    Args:
        store: the run's folder.
        plan: how models are placed.
        on_progress: called after every chunk.
    """

    def __init__(
        self, experiment: Experiment, store: Store, plan: ParallelPlan, on_progress: Callable[[Progress], None]
    ) -> None:
        self.experiment = experiment
        self.store = store
        self.on_progress = on_progress
        self.clock = Clock()
        self.late = _late_tasks(experiment)
        arms = experiment.arms
        tasks = {arm.name: arm.tasks for arm in arms}
        seed, schema = experiment.config.seed, experiment.schema
        taught = {teacher for arm in arms for teacher in arm.teachers}
        delayed = {arm.name for arm in arms if arm.name in taught and arm.config.supervision.delay > NOW}
        prompt = tuple(label.name for label in schema.labels if label.delay == NOW)
        self.stages = [
            Stage(Trainer(arm, schema, tasks, plan, seed), store, schema, prompt, arm.name in taught - delayed)
            for arm in arms
        ]
        self.labellers = [
            Labeller(
                Trainer(arm, schema, tasks, plan, seed),
                store,
                tuple(student.name for student in arms if arm.name in student.teachers),
            )
            for arm in arms
            if arm.name in delayed
        ]
        where = {arm.name: arm.config.where for arm in arms}
        self.reader = ChunkReader(experiment.source, schema, experiment.config.stream, where, plan.shard)

    def run(self) -> None:
        """Does every window that some stage has not committed."""
        span = self.experiment.source.time_range()
        length = self.experiment.config.stream.window
        count = sum(1 for _ in windows_of(span, length))
        done = {stage.name: set(self.store.log.windows("train", stage.name)) for stage in self.stages}
        for window in windows_of(span, length):
            stages = [stage for stage in self.stages if window.index not in done[stage.name]]
            if stages:
                self._window(window, stages, span, count)

    def _window(self, window: Window, stages: list[Stage], span: TimeRange, count: int) -> None:
        teachers = self._committed_supervision(window, stages)
        needed = {teacher for stage in stages for teacher in stage.trainer.arm.teachers}
        labellers = [one for one in self.labellers if one.teacher.name in needed - teachers.keys()]
        begun: list[Stage | Labeller] = []
        try:
            for labeller in labellers:
                labeller.begin(window)
                begun.append(labeller)
            for stage in stages:
                stage.begin(window)
                begun.append(stage)
            rows = 0
            for chunk in self._timed(self.reader.read(window)):
                rows += chunk.batch.size
                self._chunk(chunk, labellers, stages, dict(teachers))
                self.on_progress(
                    Progress(window, count, chunk.batch.size, {stage.name: stage.counters.ne for stage in stages})
                )
            skipped = self.reader.skipped
            rows += skipped + self._late_labels(window, stages, span)
            if rows:  # an empty window leaves no trace: the next one follows on the one before
                self._commit(labellers, stages, skipped)
        finally:
            for part in begun:
                part.close()

    def _commit(self, labellers: list[Labeller], stages: list[Stage], skipped: int) -> None:
        start = time.perf_counter()
        for labeller in labellers:
            labeller.commit()
        for stage in stages:
            stage.commit(skipped)
        self.clock.commit += time.perf_counter() - start

    def _committed_supervision(self, window: Window, stages: list[Stage]) -> dict[str, SupervisionIndex]:
        """What was supervised before an interruption: by teachers that have done this window already."""
        running = {stage.name for stage in stages if stage.supervises}
        needed = {teacher for stage in stages for teacher in stage.trainer.arm.teachers} - running
        return {
            teacher: self.store.supervision(teacher, window)
            for teacher in needed
            if self.store.log.has("supervise", teacher, window.index)
        }

    def _chunk(
        self, chunk: Chunk, labellers: list[Labeller], stages: list[Stage], teachers: dict[str, SupervisionIndex]
    ) -> None:
        start = time.perf_counter()
        for labeller in labellers:
            teachers[labeller.teacher.name] = labeller.label(chunk).index()
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
            for chunk in self._timed(self.reader.read(earlier)):
                start = time.perf_counter()
                rows += chunk.batch.size
                for stage in stages:
                    stage.consume_late(chunk, tasks)
                self.clock.train += time.perf_counter() - start
        return rows

    def _timed(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
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
