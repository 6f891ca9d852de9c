"""Runs the stream loop, window by window, chunk by chunk, teachers before students.

Each teacher supervises every chunk of a window, with the forward pass of its training step or with an earlier snapshot.
Each student joins the supervision, predicts, and then trains. At the end of the window every stage commits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import cached_property

from exfm.bookkeeping.commit_writer import CommitWriter, WindowCommit
from exfm.bookkeeping.progress import Clock, Progress
from exfm.config.checks import Arm, row_conditions
from exfm.config.lenders import Lender
from exfm.config.loading import Experiment
from exfm.config.needed_columns import to_train
from exfm.data.skips import Counts
from exfm.data.source_errors import source_errors
from exfm.data.stream import ChunkReader
from exfm.distributed.chunk_exchange import ShardedChunk, check_sharding, read_sharded
from exfm.distributed.chunk_supervision import ChunkSupervision, open_supervision
from exfm.errors import ConfigError, RunError
from exfm.interfaces.data_source import TimeRange, Window
from exfm.interfaces.duration import microseconds
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import FeatureSchema
from exfm.learning.frozen_snapshot import FrozenSnapshot
from exfm.learning.trainer import Trainer
from exfm.mappings import names_of
from exfm.scheduling.identity import bind_models, bind_run
from exfm.scheduling.late_rows import LateRowFinder
from exfm.scheduling.schedule import Schedule, WindowWork
from exfm.scheduling.stream_state import read_schedule
from exfm.stopping import end_if_asked, ending_after_a_chunk
from exfm.storage.commits import NONE, WindowRead
from exfm.storage.workspace import LetGoError
from exfm.supervision.external import ExternalSupervision, external_teachers
from exfm.supervision.joiner import Joiner
from exfm.supervision.store import Store
from exfm.training.epochs import Epochs
from exfm.training.labeller import Labeller, labelled_for
from exfm.training.predecessor import Predecessor, served_arm
from exfm.training.stage import Stage
from exfm.transfer.build import teacher_specs
from exfm.transfer.chunk_vectors import ChunkVectors
from exfm.transfer.teacher_parameters import TeacherParameters

NOW = timedelta(0)


class StreamLoop:
    """Runs stages of an experiment over the windows that they have not committed yet.

    Args:
        store: the run's folder.
        plan: the parallel plan. Each of its processes builds a loop, and calls it in the same order, because the loop
            runs collectives.
        on_progress: called after every chunk.
        on_window: called after every window.
        train: names of the arms to train; all by default.
        label: names of the teachers to label for, with a delay or frozen; all by default.

    Attributes:
        waiting_for: the supervision or snapshot for which ``advance`` stopped; empty at the end of the stream.
        incomplete: the last window, if ``advance`` has left it out because more rows of it may still come.
        stream_until_us: time for which the stream was complete when ``advance`` last looked; 0 before.
        stopped: whether ``advance`` has left out windows after the first, because it was limited to these.
    """

    def __init__(
        self,
        experiment: Experiment,
        store: Store,
        plan: ParallelPlan,
        on_progress: Callable[[Progress], None],
        train: Collection[str] | None = None,
        label: Collection[str] | None = None,
        on_window: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        trained = [arm for arm in experiment.arms if train is None or arm.name in train]
        labelled = [arm for arm in experiment.arms if arm.labels_later and (label is None or arm.name in label)]
        frozen = [lender for name, lender in experiment.frozen.items() if label is None or name in label]
        students = {name for arm in labelled for name in labelled_for(experiment, arm)}
        for lender in frozen:
            students.update(arm.name for arm in experiment.arms if lender.arm.name in arm.teachers)
        readers = [arm for arm in experiment.arms if arm in trained or arm in labelled or arm.name in students]
        # Models are bound by all of the experiment, and read the columns and rows of this job's models alone.
        self._whole = experiment
        self.experiment = to_train(experiment, readers, [lender.arm for lender in frozen])
        self.store = store
        self.process_group = plan.process_group
        check_sharding(experiment, self.process_group)
        self.on_progress = on_progress
        self._on_window = on_window
        self.clock = Clock()
        self.late = _late_tasks(experiment)
        self.waiting_for = ""
        self.incomplete: Window | None = None
        self.stream_until_us = 0
        self.stopped = False
        schema = self.experiment.schema
        self._teachers = teacher_specs(experiment)
        shared = TeacherParameters(experiment, store)
        prompt = tuple(label.name for label in schema.labels if label.delay == NOW)
        # Teachers without predictions of their models in any run: their students keep them beside theirs.
        external = {**experiment.config.external_tasks(), **experiment.frozen_tasks()}
        self.stages: list[Stage] = []
        for arm in trained:
            parent = experiment.parents.get(arm.base)
            trainer, predecessor = self._trainer(arm, plan), self._predecessor(arm, plan)
            self.stages.append(Stage(trainer, store, schema, prompt, shared, external, parent, predecessor))
        self.labellers: list[Labeller] = []
        for arm in labelled:
            self.labellers.append(Labeller(self._trainer(arm, plan), store, labelled_for(experiment, arm)))
        self.labellers += [self._frozen_labeller(lender, plan) for lender in frozen]
        # Not in the background if a labeller or student of this job reads snapshots, which must be complete by then.
        read_back = bool(self.labellers) or any(shared.consumers.values())
        self.epochs = Epochs(self.experiment, store, plan)
        self.commit_writer = CommitWriter(experiment.config.save_in_background and not read_back, plan.process_group)
        # By stage, the newest window that it has passed, and the newest with a manifest, which a window without rows
        # has not. A stage without an entry has not loaded its snapshot yet.
        self._done: dict[str, int] = {}
        self._committed: dict[str, int] = {}
        self._bound: set[str] = set()
        self._late = LateRowFinder(self.experiment, store, [stage.trainer.arm for stage in self.stages])
        where = row_conditions(readers)
        stream = experiment.config.stream
        self.reader = ChunkReader(self.experiment.source, schema, stream, where, plan.shard, plan.process_group)

    def _trainer(self, arm: Arm, plan: ParallelPlan, schema: FeatureSchema | None = None) -> Trainer:
        schema = schema or self.experiment.schema
        return Trainer(arm, schema, self._teachers, plan, self.experiment.config.seed)

    def _frozen_labeller(self, lender: Lender, plan: ParallelPlan) -> Labeller:
        """Builds a labeller of this run's stream that uses a single snapshot of another run."""
        arm = lender.arm
        version = self.process_group.broadcast(self.store.frozen[arm.name].version)
        if not self.process_group.all_agree(version == self.store.frozen[arm.name].version):
            raise RunError(f"teachers.{arm.name}.at: {lender.at!r} was moved while the job began; call it again")
        frozen = FrozenSnapshot(self.store.lent(arm.name).store.snapshots, lender.model, version)
        trainer = self._trainer(arm, plan, lender.schema)
        students = tuple(student.name for student in self.experiment.arms if arm.name in student.teachers)
        return Labeller(trainer, self.store, students, frozen)

    def _predecessor(self, arm: Arm, plan: ParallelPlan) -> Predecessor | None:
        """Builds a second copy of a model, for its newest published snapshot; None where its gate does not compare."""
        gate = arm.config.gate
        if gate is None or gate.predecessor_tolerance is None:
            return None
        return Predecessor(self._trainer(served_arm(arm), plan), self.store.snapshots, gate.compared_rows)

    @cached_property
    def external(self) -> dict[str, ExternalSupervision]:
        """Opens the supervision of the external teachers of the stages, at the first use."""
        used = {teacher for stage in self.stages for teacher in stage.trainer.arm.teachers}
        return external_teachers(self.experiment, used)

    def advance(self, complete_windows_only: bool = False, first_windows: int | None = None) -> int:
        """Runs the windows in order, up to a window that lacks its teachers' supervision or snapshots.

        Args:
            complete_windows_only: leave out a last window that more rows may still come for.
            first_windows: leave out the windows after the first so many that have rows.

        Returns:
            The number of windows.

        Raises:
            ConfigError: the stream begins earlier than the run, or a row breaks the schema.
            RunError: a manifest is missing, a committed file is corrupt, or processes do not see the same stream.
        """
        with source_errors():
            schedule = read_schedule(self.experiment, self.store, self.process_group, complete_windows_only)
            self.stream_until_us = schedule.span.end_us
            self._reopen(schedule)
            if self.process_group.is_rank_zero:
                self._late.count(schedule.grid, schedule.span, schedule.state.parts)
        for labeller in self.labellers:
            if labeller.frozen is not None:
                last = schedule.grid.window(schedule.count - 1)
                labeller.frozen.check(last, labeller.delay_us, f"teachers.{labeller.name}.at")
        self._resume(schedule)
        labelled = {labeller.name: labeller.head() for labeller in self.labellers}
        self._remember(labelled)
        todo = schedule.work(self._done, labelled)
        count = 0
        self.waiting_for = ""
        self.stopped = False
        if first_windows is not None:
            end_us = schedule.end_of_first(first_windows) if self.process_group.is_rank_zero else 0
            todo = self._until(todo, self.process_group.broadcast(end_us))
        self.incomplete = self._incomplete(schedule.incomplete)
        work = next(todo, None)
        try:
            while work is not None:
                self.waiting_for = self._blocker(schedule, work)
                if self.waiting_for:
                    break
                following = next(todo, None)  # ahead, so that its first rows are read during this window's commit
                with ending_after_a_chunk():
                    self._run_window(work, schedule, following)
                work = following
                count += 1
        finally:
            self.reader.close()
            self.commit_writer.settle()  # raises nothing, which would hide an error from above
        self.reader.warn_left_out()
        start = time.perf_counter()
        self.commit_writer.wait()
        self.process_group.barrier()  # because rank zero writes the manifests
        self.clock.commit += time.perf_counter() - start
        return count

    def _until(self, todo: Iterator[WindowWork], end_us: int) -> Iterator[WindowWork]:
        """Yields the work before a time, and notes that later work was left out."""
        for work in todo:
            if work.window.start_us >= end_us:
                self.stopped = True
                return
            yield work

    def _incomplete(self, last: Window | None) -> Window | None:
        """Returns the last window if it is incomplete, and a stage or labeller of this job has not committed it."""
        if last is None:
            return None
        heads = [self.store.log.head("train", stage.name) for stage in self.stages]
        heads += [labeller.head() for labeller in self.labellers]
        return last if min(heads, default=NONE) < last.index else None

    def _reopen(self, schedule: Schedule) -> None:
        """Removes commits of incomplete last windows for which more rows have come, so that they run again."""
        reopened: list[str] = []
        if self.process_group.is_rank_zero:
            stages = names_of(self.stages)
            reopened = schedule.reopen(stages, names_of(self.labellers))
        for name in json.loads(self.process_group.broadcast_bytes(json.dumps(reopened).encode())):
            # Its model loads the snapshot of the window before, because it has trained on some rows of this window.
            self._done.pop(name, None)

    def _resume(self, schedule: Schedule) -> None:
        """Loads the last committed state of each stage that has windows to run for the first time."""
        for stage in self.stages:
            if self.process_group.is_rank_zero:
                self.store.log.windows("train", stage.name)  # raises where a manifest is missing
            if stage.name not in self._done and schedule.has_work(self.store.log.head("train", stage.name)):
                self._done[stage.name] = self._committed[stage.name] = stage.resume()

    def _remember(self, labelled: Mapping[str, int]) -> None:
        """Restores a new reader's memory of earlier examples and of types of ids.

        They are read from the newest window that every stage and labeller of the job has done, because the reader goes
        on after that window.
        """
        behind = min([*self._done.values(), *labelled.values()], default=NONE)
        stage = next((stage for stage in self.stages if self._done.get(stage.name) == behind), None)
        if behind == NONE or stage is None or self.reader.has_read:
            return
        commit = self.store.log.load("train", stage.name, behind)
        self.reader.id_kinds.update(commit.counters["id_kinds"])
        # A reader that compares the ids of its shard alone cannot tell them from those of other processes in the file.
        if commit.files and self.reader.compares_all_ids:
            # Of a model that goes back behind its newest windows, the predictions may have been let go.
            with suppress(LetGoError):
                self.reader.remember(self.store.predicted_ids(stage.name, commit.window))

    def _blocker(self, schedule: Schedule, work: WindowWork) -> str:
        """Names the supervision or snapshot that a window waits for; empty if the window can run."""
        missing = ""
        if self.process_group.is_rank_zero:
            external = self.experiment.config.external_teachers
            teachers: dict[str, list[str]] = {}
            for stage in self.stages:
                teachers[stage.name] = [teacher for teacher in stage.trainer.arm.teachers if teacher not in external]
            missing = schedule.missing(work, teachers, self._supervising(work))
        return self.process_group.broadcast_bytes(missing.encode()).decode()

    def _supervising(self, work: WindowWork) -> set[str]:
        """Returns the models of this job that supervise a window while it runs."""
        supervising = {stage.name for stage in self.stages if stage.supervises and stage.name in work.stages}
        return supervising | set(work.labellers)

    def _run_window(self, work: WindowWork, schedule: Schedule, following: WindowWork | None) -> None:
        """Runs the stages and labellers of a window, and commits them."""
        window = work.window
        stages = [stage for stage in self.stages if stage.name in work.stages]
        labellers = [labeller for labeller in self.labellers if labeller.name in work.labellers]
        streams: dict[str, ChunkSupervision] = {}
        begun: list[Stage | Labeller] = []
        self._repeat_first_windows(window, stages, schedule)
        try:
            self._open_supervision(work, stages, streams)
            self._begin(work, schedule, stages, labellers, begun)
            rows = 0
            for chunk in self._timed(read_sharded(self.reader, window, self.process_group, work.only)):
                rows += chunk.size
                self._run_chunk(chunk, labellers, stages, streams)
                self.on_progress(self._progress(work, schedule, stages, window.start_us, chunk.size))
                end_if_asked()
            # Before late labels, because reading their windows overwrites the reader's counts.
            skipped, id_kinds = self.reader.skipped, dict(self.reader.id_kinds)
            rows += self._late_labels(self.reader, window, stages, schedule.span)
            if following is not None:
                # Before the commit, during which its first rows are read in the background.
                self.reader.begin(following.window, following.only)
            if rows or skipped:
                # A window without rows has no manifest: the next manifest names the window before it.
                self._bind(schedule, [*work.stages, *work.labellers])
                self._commit(stages, labellers, rows, skipped, id_kinds)
                self._committed |= {stage.name: window.index for stage in stages}
            for stage in stages:
                self._done[stage.name] = window.index
            self._on_window(self._progress(work, schedule, stages, window.end_us, 0))
        finally:
            for opened in (*begun, *streams.values()):
                opened.close()

    def _progress(
        self, work: WindowWork, schedule: Schedule, stages: list[Stage], finished_us: int, rows: int
    ) -> Progress:
        """Describes the progress of the job when all before a time is finished."""
        ne = {stage.name: stage.counters.ne for stage in stages}
        lag_s = max(schedule.span.end_us - finished_us, 0) / 1e6
        return Progress(work.window, schedule.count, rows, ne, tuple(work.labellers), lag_s, self.clock)

    def _begin(
        self,
        work: WindowWork,
        schedule: Schedule,
        stages: list[Stage],
        labellers: list[Labeller],
        begun: list[Stage | Labeller],
    ) -> None:
        """Opens the window's files of labellers and stages, and adds each to ``begun`` once it is open."""
        read = WindowRead(schedule.state.versions(work), min(work.window.end_us, schedule.span.end_us))
        missed = work.missed or {}
        start = time.perf_counter()
        for labeller in labellers:
            labeller.begin(work.window, read)
            begun.append(labeller)
        self.clock.supervise += time.perf_counter() - start
        for stage in stages:
            stage.begin(work.window, self._committed[stage.name], read, missed.get(stage.name, ()))
            begun.append(stage)

    def _bind(self, schedule: Schedule, names: Collection[str]) -> None:
        """Binds the run's folder to its windows, and the names of models to them, before their first commits."""
        if not self.process_group.is_rank_zero:
            return
        if not (self._bound or schedule.state.bound):
            bind_run(self.store, schedule.grid)
        # A frozen teacher is no model of this run.
        unbound = set(names) - self._bound - self.experiment.frozen.keys()
        if unbound:
            bind_models(self._whole, self.store, unbound)
            self._bound |= unbound

    def _commit(
        self,
        stages: list[Stage],
        labellers: list[Labeller],
        rows: int,
        skipped: Counts,
        id_kinds: Mapping[str, str],
    ) -> None:
        """Commits a window: labellers at once, stages by the commit writer."""
        start = time.perf_counter()
        for labeller in labellers:
            labeller.commit(rows)
        # Stages copy their tensors into the buffers of the previous commit, which must be written by then.
        self.commit_writer.wait()
        commits: list[WindowCommit] = []
        try:
            for stage in stages:
                commits.append(stage.commit(rows, skipped, id_kinds, self.commit_writer))
        except BaseException:
            # If the model of any stage has diverged, no stage commits, so that all go on from the same window.
            for commit in commits:
                commit.discard()
            raise
        self.commit_writer.write(commits)
        if not self.commit_writer.background:
            # Until rank zero has stored the snapshots, which the other ranks may read next.
            self.process_group.barrier()
        self.clock.commit += time.perf_counter() - start

    def _open_supervision(self, work: WindowWork, stages: list[Stage], streams: dict[str, ChunkSupervision]) -> None:
        """Opens the supervision of a window that other jobs, or this job before an interruption, have committed.

        Raises:
            ConfigError: a vacuum has removed it.
        """
        needed = {teacher for stage in stages for teacher in stage.trainer.arm.teachers} - self._supervising(work)
        for teacher in sorted(needed - self.external.keys()):
            # Rank zero decides for all. A teacher that has passed a window without rows has nothing to open.
            if self.process_group.broadcast(
                self.process_group.is_rank_zero and self.store.is_supervised(teacher, work.window)
            ):
                try:
                    stream = open_supervision(self.store, teacher, work.window, self.process_group)
                except LetGoError as error:
                    raise ConfigError(str(error)) from error  # a student that begins too early, and not damage
                if stream is not None:
                    streams[teacher] = stream

    def _run_chunk(
        self,
        chunk: ShardedChunk,
        labellers: list[Labeller],
        stages: list[Stage],
        streams: Mapping[str, ChunkSupervision],
    ) -> None:
        """Supervises a chunk with the labellers, then trains the stages on it, teachers before students."""
        start = time.perf_counter()
        teachers: dict[str, Joiner] = dict(self.external)
        for name, stream in streams.items():
            teachers[name] = stream.of_chunk(chunk)
        for labeller in labellers:
            teachers[labeller.name] = labeller.label(chunk).index()
        labelled = time.perf_counter()
        vectors = ChunkVectors(chunk.batch, teachers, chunk)
        for stage in stages:
            supervision = stage.consume(chunk, teachers, vectors)
            if stage.supervises:
                teachers[stage.name] = supervision.index()  # for the stages after it
            if self.clock.first_batch is None:
                self.clock.first_batch = self.clock.since_start()
        self.clock.supervise += labelled - start
        self.clock.train += time.perf_counter() - labelled

    def _repeat_first_windows(self, window: Window, stages: list[Stage], schedule: Schedule) -> None:
        """Trains the stages with ``epochs`` again on their first windows, before the first window after these."""

        def on_chunk(past: Window, rows: int) -> None:
            self.on_progress(Progress(past, schedule.count, rows, {}, clock=self.clock))
            end_if_asked()

        for stage in stages:
            if self.epochs.is_due(stage, self._committed[stage.name], window, schedule):
                # The supervision of all teachers is read from the store.
                self.commit_writer.wait()
                self.process_group.barrier()
                start, train = time.perf_counter(), self.clock.train
                previous = self._committed[stage.name]
                self.epochs.repeat(stage, previous, schedule, self.external, self._late_labels, on_chunk)
                # Not added, because training on late labels adds its time itself.
                self.clock.train = train + time.perf_counter() - start

    def _late_labels(self, reader: ChunkReader, window: Window, stages: list[Stage], span: TimeRange) -> int:
        """Trains on labels that arrived during the window, of events older by the label's delay; counts them."""
        rows = 0
        for delay, tasks in self.late.items():
            shift = microseconds(delay)
            earlier = Window(window.index, max(window.start_us - shift, span.start_us), window.end_us - shift)
            if earlier.start_us >= earlier.end_us:
                continue
            # The predictions beside which labels are compared may still be written.
            self.commit_writer.wait()
            for stage in stages:
                stage.late_labels.open(TimeRange(earlier.start_us, earlier.end_us), tasks)
            for chunk in self._timed(read_sharded(reader, earlier, self.process_group)):
                start = time.perf_counter()
                rows += chunk.size
                for stage in stages:
                    stage.consume_late(chunk, tasks)
                self.clock.train += time.perf_counter() - start
        return rows

    def _timed(self, chunks: Iterator[ShardedChunk]) -> Iterator[ShardedChunk]:
        """Yields the chunks, and adds the time spent waiting for them to the data time."""
        while True:
            start = time.perf_counter()
            chunk = next(chunks, None)
            self.clock.data += time.perf_counter() - start
            if chunk is None:
                return
            yield chunk


def _late_tasks(experiment: Experiment) -> dict[timedelta, tuple[str, ...]]:
    """Groups tasks by the delay of their labels, without the tasks whose labels have no delay."""
    trained = experiment.trained_tasks
    late: dict[timedelta, tuple[str, ...]] = {}
    for label in experiment.schema.labels:
        if label.delay > NOW and label.name in trained:
            late[label.delay] = (*late.get(label.delay, ()), label.name)
    return late
