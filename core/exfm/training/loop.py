"""The stream loop: window by window, chunk by chunk, teachers before students.

In every window, for every chunk of rows: each teacher supervises it (with its own forward pass, or with an earlier
snapshot), each student joins that supervision, predicts, and then trains. At the window's end each stage commits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import timedelta
from functools import cached_property

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.data.skips import Counts
from exfm.data.source_errors import source_errors
from exfm.data.stream import ChunkReader
from exfm.distributed.chunk_exchange import SpreadChunk, check_spread, read_spread
from exfm.interfaces.data_source import TimeRange, Window
from exfm.interfaces.duration import microseconds
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.scheduling.identity import bind_run
from exfm.scheduling.late_rows import LateRowFinder
from exfm.scheduling.schedule import Schedule, WindowWork
from exfm.scheduling.stream_state import read_schedule
from exfm.stopping import end_if_asked, ending_after_a_chunk
from exfm.storage.commits import NONE, WindowRead
from exfm.supervision.external import ExternalSupervision
from exfm.supervision.external_teachers import external_teachers
from exfm.supervision.joiner import Joiner
from exfm.supervision.store import Store
from exfm.supervision.streaming import SupervisionStream
from exfm.training.commit_writer import CommitWriter, WindowCommit
from exfm.training.labeller import Labeller
from exfm.training.progress import Clock, Progress
from exfm.training.stage import Stage
from exfm.training.trainer import Trainer
from exfm.transfer.build import teacher_specs
from exfm.transfer.chunk_vectors import ChunkVectors
from exfm.transfer.teacher_parameters import TeacherParameters

NOW = timedelta(0)


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
        incomplete: the last window, where ``advance`` has left it out because more rows of it may still come.
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
        self.process_group = plan.process_group
        check_spread(experiment, self.process_group)
        self.on_progress = on_progress
        self.clock = Clock()
        self.late = _late_tasks(experiment)
        self.waiting_for = ""
        self.incomplete: Window | None = None
        arms, schema = experiment.arms, experiment.schema
        self._teachers = teacher_specs(experiment)
        shared = TeacherParameters(experiment, store)
        prompt = tuple(label.name for label in schema.labels if label.delay == NOW)
        students = {arm.name: tuple(s.name for s in arms if arm.name in s.teachers) for arm in arms}
        external = {name: tuple(config.predictions) for name, config in experiment.config.teachers.items()}
        self.stages = [
            Stage(self._trainer(arm, plan), store, schema, prompt, bool(students[arm.name]), shared, external)
            for arm in arms
            if train is None or arm.name in train
        ]
        self.labellers = [
            Labeller(self._trainer(arm, plan), store, students[arm.name])
            for arm in arms
            if students[arm.name] and arm.config.supervision.delay > NOW and (label is None or arm.name in label)
        ]
        read_back = bool(self.labellers) or any(shared.consumers.values())
        self.saving = CommitWriter(experiment.config.save_in_background and not read_back)
        self._done: dict[str, int] = {}  # newest window of each stage that has been brought to its last state
        self._committed: dict[str, int] = {}  # the newest of them that has left a manifest
        self._bound = False
        self._late = LateRowFinder(experiment, store, [stage.trainer.arm for stage in self.stages])
        where = {arm.name: arm.config.where for arm in arms}
        self.reader = ChunkReader(experiment.source, schema, experiment.config.stream, where, plan.shard)

    def _trainer(self, arm: Arm, plan: ParallelPlan) -> Trainer:
        return Trainer(arm, self.experiment.schema, self._teachers, plan, self.experiment.config.seed)

    @cached_property
    def external(self) -> dict[str, ExternalSupervision]:
        """The supervision from elsewhere that the stages use."""
        used = {teacher for stage in self.stages for teacher in stage.trainer.arm.teachers}
        return external_teachers(self.experiment, used)

    def advance(self, complete_windows_only: bool = False) -> int:
        """Does the windows in order until one lacks its teachers' supervision or snapshots; returns how many.

        Args:
            complete_windows_only: leave out a last window that more rows may still come for.

        Raises:
            ConfigError: the stream begins earlier than the run, or a row breaks the schema.
            RunError: a manifest is missing, a committed file is corrupt, or processes do not see the same stream.
        """
        with source_errors():
            schedule = read_schedule(self.experiment, self.store, self.process_group, complete_windows_only)
            self._reopen(schedule)
            if self.process_group.is_rank_zero:
                self._late.look(schedule.grid, schedule.span, schedule.state.parts)
        self._resume(schedule)
        labelled = {one.name: self.store.log.head("supervise", one.name) for one in self.labellers}
        self._remember(labelled)
        todo = schedule.work(self._done, labelled)
        count = 0
        self.waiting_for = ""
        self.incomplete = self._left_out(schedule.incomplete)
        work = next(todo, None)
        try:
            while work is not None:
                self.waiting_for = self._missing(schedule, work)
                if self.waiting_for:
                    break
                following = next(todo, None)
                with ending_after_a_chunk():
                    self._window(work, schedule, following)
                work = following
                count += 1
        finally:
            self.reader.close()
            self.saving.settle()
        self.reader.warn_left_out()
        start = time.perf_counter()
        self.saving.wait()
        self.process_group.barrier()
        self.clock.commit += time.perf_counter() - start
        return count

    def _left_out(self, last: Window | None) -> Window | None:
        """The last window, where it is incomplete and somebody of this job has not committed it all the same."""
        if last is None:
            return None
        heads = [self.store.log.head("train", stage.name) for stage in self.stages]
        heads += [self.store.log.head("supervise", labeller.name) for labeller in self.labellers]
        return last if min(heads, default=NONE) < last.index else None

    def _reopen(self, schedule: Schedule) -> None:
        """Takes back last windows that were committed incomplete, where more of their rows have come."""
        reopened = []
        if self.process_group.is_rank_zero:
            stages = [stage.name for stage in self.stages]
            reopened = schedule.reopen(stages, [one.name for one in self.labellers])
        for name in json.loads(self.process_group.broadcast_bytes(json.dumps(reopened).encode())):
            self._done.pop(name, None)  # its model goes back to the snapshot before

    def _resume(self, schedule: Schedule) -> None:
        """The first time a stage has windows to do, brings its model to its last committed state."""
        for stage in self.stages:
            if self.process_group.is_rank_zero:
                self.store.log.windows("train", stage.name)  # raises where a manifest is missing
            if stage.name not in self._done and schedule.has_work(self.store.log.head("train", stage.name)):
                self._done[stage.name] = self._committed[stage.name] = stage.resume()

    def _remember(self, labelled: Mapping[str, int]) -> None:
        """Tells a reader that has read nothing yet which examples and types of ids came before.

        They are those of the newest window that every stage and labeller of the job has done.
        """
        behind = min([*self._done.values(), *labelled.values()], default=NONE)
        stage = next((stage for stage in self.stages if self._done.get(stage.name) == behind), None)
        if behind == NONE or stage is None or self.reader.has_read:
            return
        commit = self.store.log.load("train", stage.name, behind)
        self.reader.id_kinds.update(commit.counters["id_kinds"])
        if commit.files and self.process_group.world_size == 1:
            rows = self.store.predictions(stage.name, commit.window)
            self.reader.remember(rows.column("example_id").to_numpy())

    def _missing(self, schedule: Schedule, work: WindowWork) -> str:
        """Says what a window waits for; nothing where it can be done."""
        missing = ""
        if self.process_group.is_rank_zero:
            elsewhere = self.experiment.config.teachers
            teachers = {
                stage.name: [teacher for teacher in stage.trainer.arm.teachers if teacher not in elsewhere]
                for stage in self.stages
            }
            missing = schedule.missing(work, teachers, self._supervising(work))
        return self.process_group.broadcast_bytes(missing.encode()).decode()

    def _supervising(self, work: WindowWork) -> set[str]:
        """The models of this job that supervise a window while it is done."""
        supervising = {stage.name for stage in self.stages if stage.supervises and stage.name in work.stages}
        return supervising | set(work.labellers)

    def _window(self, work: WindowWork, schedule: Schedule, following: WindowWork | None) -> None:
        window = work.window
        stages = [stage for stage in self.stages if stage.name in work.stages]
        labellers = [one for one in self.labellers if one.name in work.labellers]
        read = WindowRead(schedule.state.parts_of(work), min(window.end_us, schedule.span.end_us))
        streams: dict[str, SupervisionStream] = {}
        begun: list[Stage | Labeller] = []
        try:
            self._open_supervision(work, stages, streams)
            start = time.perf_counter()
            for labeller in labellers:
                labeller.begin(window, read)
                begun.append(labeller)
            self.clock.supervise += time.perf_counter() - start
            for stage in stages:
                stage.begin(window, self._committed[stage.name], read, (work.missed or {}).get(stage.name, ()))
                begun.append(stage)
            rows = 0
            for chunk in self._timed(read_spread(self.reader, window, self.process_group, work.only)):
                rows += chunk.size
                self._chunk(chunk, labellers, stages, streams)
                self.on_progress(
                    Progress(window, schedule.count, chunk.size, {stage.name: stage.counters.ne for stage in stages})
                )
                end_if_asked()
            skipped, id_kinds = self.reader.skipped, dict(self.reader.id_kinds)
            rows += self._late_labels(window, stages, schedule.span)
            if following is not None:  # its first rows are read while this window is committed
                self.reader.begin(following.window, following.only)
            if rows or skipped:  # a window without rows leaves nothing behind: the next manifest passes over it
                self._bind(schedule)
                self._commit(stages, labellers, rows, skipped, id_kinds)
                self._committed |= {stage.name: window.index for stage in stages}
            for stage in stages:
                self._done[stage.name] = window.index
        finally:
            for part in (*begun, *streams.values()):
                part.close()

    def _bind(self, schedule: Schedule) -> None:
        """Binds the run's folder to the experiment, before its first commit."""
        if self.process_group.is_rank_zero and not (self._bound or schedule.state.bound):
            bind_run(self.experiment, self.store, schedule.grid)
        self._bound = True

    def _commit(
        self,
        stages: list[Stage],
        labellers: list[Labeller],
        rows: int,
        skipped: Counts,
        id_kinds: Mapping[str, str],
    ) -> None:
        start = time.perf_counter()
        for labeller in labellers:
            labeller.commit(rows)
        self.saving.wait()
        ended: list[WindowCommit] = []
        try:
            for stage in stages:
                one = stage.commit(rows, skipped, id_kinds, self.saving.background)
                ended += [] if one is None else [one]
        except BaseException:  # of all stages or, where the model of one has diverged, of none
            for one in ended:
                one.discard()
            raise
        self.saving.do(ended)
        if not self.saving.background:
            self.process_group.barrier()  # until the first process has stored what the others may now read
        self.clock.commit += time.perf_counter() - start

    def _open_supervision(self, work: WindowWork, stages: list[Stage], streams: dict[str, SupervisionStream]) -> None:
        """Opens what other jobs, or this one before an interruption, have supervised of the window."""
        needed = {teacher for stage in stages for teacher in stage.trainer.arm.teachers} - self._supervising(work)
        for teacher in sorted(needed - self.external.keys()):
            # One that has passed the window, which had no rows for it then, has nothing to open.
            if self.process_group.broadcast(
                self.process_group.is_rank_zero and self.store.log.has("supervise", teacher, work.window.index)
            ):
                stream = self.store.supervision(teacher, work.window)
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
        vectors = ChunkVectors(chunk.batch, teachers)
        for stage in stages:
            made = stage.consume(chunk, teachers, vectors)
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
            shift = microseconds(delay)
            earlier = Window(window.index, max(window.start_us - shift, span.start_us), window.end_us - shift)
            if earlier.start_us >= earlier.end_us:
                continue
            for chunk in self._timed(read_spread(self.reader, earlier, self.process_group)):
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
