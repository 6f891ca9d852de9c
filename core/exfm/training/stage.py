"""Trains an arm on the windows of the stream, and writes its predictions, supervision and commits.

Legend: B examples.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from exfm.bookkeeping.commit_writer import CommitWriter, ReusableBuffers, WindowCommit
from exfm.bookkeeping.window_counters import WindowCounters, task_sums
from exfm.config.lenders import Lender
from exfm.data.batch import Batch
from exfm.data.skips import Counts, sum_counts
from exfm.distributed.chunk_exchange import ModelBatch, ModelChunk, ShardedChunk
from exfm.distributed.late_labels import LateLabelCollector
from exfm.distributed.sharded_rows import ShardedRowWriter
from exfm.evaluation.label_kinds import as_counters
from exfm.interfaces.data_source import Window
from exfm.interfaces.duration import microseconds, microseconds_since_1970
from exfm.interfaces.local_shards import StateTensor, whole_tensors
from exfm.interfaces.schema import FeatureSchema
from exfm.learning.divergence_check import FEW, DivergenceCheck, State
from exfm.learning.initial_weights import InitialWeights, check_new_tables, load_initial_weights
from exfm.learning.model_output import ForwardRows
from exfm.learning.resume import load_newest
from exfm.learning.trainer import Forward, Trainer
from exfm.mappings import add_prefix, map_values, strip_prefix
from exfm.modeling.cost import FlopsPerExample, parameters_by_section
from exfm.storage.commits import NONE, WindowRead
from exfm.storage.delta import Delta
from exfm.storage.deltas import DeltaPlan, TableState
from exfm.storage.finite import rows_not_finite
from exfm.storage.shard_writer import Shards, plan_shards
from exfm.supervision.coverage import Coverage
from exfm.supervision.joiner import Joined, Joiner, SupervisionRows
from exfm.supervision.row_files import (
    Column,
    Folder,
    as_columns,
    predictions_schema,
    supervision_columns,
    supervision_schema,
    teacher_column,
)
from exfm.supervision.store import Store
from exfm.training.predecessor import Predecessor
from exfm.training.window_gate import WindowGate
from exfm.transfer.chunk_vectors import ChunkVectors
from exfm.transfer.equal_replicas import check_equal_replicas
from exfm.transfer.example_embeddings import join_embeddings
from exfm.transfer.taught_batch import TaughtBatch
from exfm.transfer.teacher_parameters import TeacherParameters
from exfm.transfer.vector_feed import VectorFeed

_FEED = "feed."
"""State-dict prefix of teacher vectors still in flight, younger than ``supervision.lag``."""

logger = logging.getLogger(__name__)


class Stage:
    """Trains an arm on the windows of a stream, and commits each window.

    Args:
        trainer: the model.
        store: where windows are committed.
        schema: the stream's schema.
        prompt: tasks whose labels arrive together with the example.
        shared: the parameters that students take from their teachers' snapshots.
        external: tasks of the external teachers, whose predictions are written beside the model's.
        parent: the model of a run that the model starts from, if any.
        predecessor: predicts with the model's newest published snapshot; None where its gate does not compare.

    Attributes:
        late_labels: the labels of earlier examples that are read again in the window.
        has_repeated: whether the model has trained again on the windows of its ``epochs`` since it was loaded.
    """

    def __init__(
        self,
        trainer: Trainer,
        store: Store,
        schema: FeatureSchema,
        prompt: tuple[str, ...],
        shared: TeacherParameters,
        external: Mapping[str, Collection[str]],
        parent: Lender | None = None,
        predecessor: Predecessor | None = None,
    ) -> None:
        self.trainer = trainer
        self.process_group = trainer.plan.process_group
        self.name, self.tasks = trainer.arm.name, trainer.arm.tasks
        self.labels = trainer.model.labels
        self.store = store
        self.oracles = tuple(label.name for label in schema.labels if label.oracle and label.name in self.tasks)
        self.weighted = tuple(task for task in schema.weighted if task in self.tasks)
        self._external: dict[str, tuple[str, str]] = {}
        for teacher in trainer.arm.teachers:
            for task in external.get(teacher, ()):
                if task in self.tasks:
                    self._external[teacher_column(teacher, task)] = (teacher, task)
        self.prompt = tuple(task for task in self.tasks if task in prompt)
        self._gate = WindowGate(trainer.arm, self.prompt, store.log, self.process_group, predecessor)
        # Without a delay its forward pass is stored as supervision; with a delay, a labeller reads its snapshots.
        self.supervises = trainer.arm.stores and not trainer.arm.labels_later
        self.labelled_later = trainer.arm.labels_later
        self.shared = shared
        self._taken: dict[str, set[str]] = {name: set() for name in trainer.arm.teachers}
        for strategy in trainer.transfer.strategies:
            for name in self._taken.keys() & set(strategy.config.teachers):
                self._taken[name].update(strategy.teacher_tasks.values())
        self._feed = VectorFeed(trainer.transfer.parameters.fed_tables(), shared.lags_us)
        self._accumulate = trainer.arm.config.optimizer.dense.accumulate
        self.counters = WindowCounters()
        self.late_labels = LateLabelCollector(store, self.process_group, self.name, NONE)
        self._flops = FlopsPerExample(trainer.model, FEW)
        self._weights, self._training = ReusableBuffers(), ReusableBuffers()
        self._deltas = DeltaPlan(trainer.arm.config.keep.full_snapshot_every)
        self._divergence = DivergenceCheck(trainer, store)
        self._last: Batch | None = None
        self._parent = parent
        self._initial: InitialWeights | None = None
        self._unchecked: InitialWeights | None = None
        self.has_repeated = False
        # By task, why the gate holds the model as it was at the end of the window before.
        self._held: dict[str, str] = {}

    def begin(self, window: Window, previous: int, read: WindowRead, missed: Sequence[int] = ()) -> None:
        """Opens a window's files, and loads the parameters that the model takes from its teachers.

        Args:
            previous: index of the window that the stage has committed before.
            read: the state of the stream in which the window is read.
            missed: indices of windows since ``previous`` that other models have trained on, and whose rows the stream
                no longer has.
        """
        self.counters = WindowCounters()
        start = time.perf_counter()
        trainer = self.trainer
        trainer.transfer.begin()
        self.take_parameters(window)
        self._gate.begin()
        self.counters.seconds = time.perf_counter() - start
        self._window, self._previous, self._read_state, self._missed = window, previous, read, missed
        if missed:
            logger.warning(
                "%s: windows %s were trained on by other models of the run and are in the stream no more: left out",
                *(self.name, ", ".join(map(str, missed))),
            )
        self._watermark_us = window.start_us
        self.late_labels = LateLabelCollector(self.store, self.process_group, self.name, window.index)
        if previous == NONE:
            self._initial = load_initial_weights(trainer, self._parent, self.store, window)
            self._unchecked = self._initial
            if self._initial is not None:
                # Again, because the other model's weights have overwritten the teachers' parts.
                self.take_parameters(window)
            epochs = trainer.arm.config.epochs
            if epochs is not None and window.end_us <= epochs.until_us:
                trainer.transfer.parameters.keep_start()
        self._predictions = self._row_writer(
            "predictions", predictions_schema(self.tasks, self.oracles, self._external, self.weighted, self.labels)
        )
        self._owns_files = True
        self._supervision: ShardedRowWriter | None = None
        if self.supervises:
            trainer = self.trainer
            schema = supervision_schema(self.tasks, self.name, trainer.embedding, trainer.vectors, self.labels)
            self._supervision = self._row_writer("supervision", schema)

    def take_parameters(self, window: Window) -> None:
        """Loads the parameters that the model takes from its teachers at the beginning of a window."""
        transfer, growth = self.trainer.transfer, self.trainer.growth
        with self.trainer.dense.average.setting_weights():
            self.shared.load_into(transfer.parameters, growth, self.process_group, window)
        self._feed.begin()

    def _row_writer(self, folder: Folder, schema: pa.Schema) -> ShardedRowWriter:
        return ShardedRowWriter(self.process_group, self.store.workspace, folder, self.name, self._window.index, schema)

    def resume(self) -> int:
        """Loads the newest snapshot that can be read; returns the index of its window, ``NONE`` without snapshots.

        A corrupt snapshot is named in a warning, and the snapshot before it is loaded. Windows since then run again.

        Raises:
            RunError: there are snapshots and none can be read, or a snapshot is not finite.
        """
        self.has_repeated = False
        loaded = load_newest(self.trainer, self.store.snapshots)
        if loaded is None:
            return NONE
        snapshot, training = loaded
        self._feed.load_state(whole_tensors(strip_prefix(_FEED, training)))
        # The model is what the snapshot is: rows that change from here on are all that the next has to save.
        self.trainer.parallel_model.take_changed_rows()
        shapes: dict[str, Sequence[int]] = {}
        for files in (snapshot.weights, snapshot.training):
            shapes |= {name: tuple(tensor.shape) for name, tensor in self.store.snapshots.describe(files).items()}
        self._deltas.go_on_from(snapshot.version, snapshot.delta, shapes)
        self._held = dict(snapshot.held)
        return snapshot.version

    def consume(self, chunk: ShardedChunk, teachers: Mapping[str, Joiner], vectors: ChunkVectors) -> SupervisionRows:
        """Predicts the arm's rows of a chunk and trains on them, batch by batch.

        Args:
            teachers: by name.
            vectors: the vectors that the teachers have stored for the chunk.

        Returns:
            The supervision of the rows.
        """
        start = time.perf_counter()
        rows = chunk.cut(chunk.rows[self.name], self.trainer.arm.config.batch_size)
        seen = chunk.select_without_features(rows.index)
        joined = self._join(seen, teachers)
        for name, of_teacher in joined.items():
            self.counters.teachers.setdefault(name, Coverage()).add(of_teacher, self._taken[name])
        outputs = ForwardRows(self.labels, self.trainer.embedding, self.trainer.vectors)
        taught = self._taught(joined)
        self.trainer.transfer.score(taught, seen, [shard.size for shard in rows.shards])
        self._feed.open(vectors, rows.index)
        for batch in self._batches(chunk, rows):
            self._train(join_embeddings(batch, self.trainer.model, joined), taught, outputs)
        self._feed.close()
        supervision = outputs.supervision(seen)
        probabilities = outputs.probabilities()
        self._write(rows, self._prediction_columns(seen, probabilities, joined), supervision)
        self._count(seen, rows, probabilities, supervision)
        self.counters.seconds += time.perf_counter() - start
        return supervision

    def _batches(self, chunk: ShardedChunk, rows: ModelChunk) -> Iterator[ModelBatch]:
        """Yields the arm's batches of a chunk, the next of which is on its way to the device."""
        batches = chunk.batches(rows, self.trainer.model, self._accumulate)
        return self.trainer.copies.ahead(batches, lambda batch: batch.batch)

    def _join(self, seen: Batch, teachers: Mapping[str, Joiner]) -> dict[str, Joined]:
        """Joins the supervision of the arm's teachers to examples."""
        names = self.trainer.arm.teachers
        return {name: teachers[name].join(seen.example_id, seen.event_time_us) for name in names}

    def _taught(self, joined: Mapping[str, Joined]) -> list[TaughtBatch]:
        return self.trainer.transfer.join(map_values(lambda teacher: teacher.supervision, joined))

    def _step(self, batch: ModelBatch, taught: Sequence[TaughtBatch], tasks: Sequence[str]) -> Forward:
        """Trains on a batch of a chunk, whose teacher output is ``taught``."""
        taught = self.trainer.transfer.slice(taught, batch.rows)
        return self.trainer.step(batch.batch, taught, tasks, batch.shard.counts, batch.accumulation)

    def _train(self, batch: ModelBatch, taught: Sequence[TaughtBatch], outputs: ForwardRows) -> None:
        """Trains on a batch with the labels that arrive with it, and adds the forward pass to ``outputs``."""
        if not self.counters.flops:
            self.counters.flops = self._flops.count(batch.batch)
        if self._unchecked is not None:
            check_new_tables(self.trainer, self._unchecked, batch.batch)
            self._unchecked = None
        self._feed.override(batch.rows)
        # Copied before the step, because the forward pass is that of the model before it has seen the batch's labels.
        learned: frozenset[str] = frozenset()  # of a held model, from which nobody learns: its rows are misses
        if not self._held:
            learned = frozenset(self.trainer.learned)
        forward = self._step(batch, taught, self.prompt)
        self.trainer.observe(batch.batch, batch.shard.size)
        self._last = batch.batch
        self._gate.add(batch, forward)
        if self.supervises:
            # Rows after the step: a student may read them only for later examples, so that no label leaks.
            forward = forward.with_vectors(self.trainer.rows(batch.batch))
        outputs.add(forward.first_rows(batch.shard.size), learned, self._watermark_us)
        self._watermark_us = batch.shard.newest_us

    def rewind(self) -> None:
        """Takes the teachers' vectors back to the beginning of the model's stream, where a further pass begins."""
        self.trainer.transfer.parameters.rewind()
        self._feed.clear()

    def end_repeating(self) -> None:
        """Ends the further passes, after which vectors are those of the end of the first pass."""
        self.trainer.transfer.parameters.forget_start()
        self.has_repeated = True

    def repeat(self, chunk: ShardedChunk, teachers: Mapping[str, Joiner]) -> None:
        """Trains again on a chunk of a committed window, and records nothing.

        Statistics of dense features and id tables count an example once, in the first pass.
        """
        rows = chunk.cut(chunk.rows[self.name], self.trainer.arm.config.batch_size)
        joined = self._join(chunk.select_without_features(rows.index), teachers)
        taught = self._taught(joined)
        self._feed.open(ChunkVectors(chunk.batch, teachers, chunk), rows.index)
        for batch in self._batches(chunk, rows):
            self._feed.override(batch.rows)
            self._step(join_embeddings(batch, self.trainer.model, joined), taught, self.prompt)
        self._feed.close()

    def consume_late(self, chunk: ShardedChunk, tasks: tuple[str, ...]) -> None:
        """Trains on labels that arrived after their examples had been predicted."""
        arrived = [task for task in self.tasks if task in tasks]
        start = time.perf_counter()
        if arrived:
            rows = chunk.cut(self._since_start(chunk), self.trainer.arm.config.batch_size)
            learned = self.trainer.arm.late_tasks(arrived)
            for batch in self._batches(chunk, rows) if learned else ():
                self._step(batch, (), learned)
                self._last = batch.batch
            self.late_labels.add(chunk.select_without_features(rows.index), arrived)
        self.counters.seconds += time.perf_counter() - start

    def _since_start(self, chunk: ShardedChunk) -> torch.Tensor | None:
        """Selects the arm's rows of a chunk that are not before its start; None for all rows."""
        picked = chunk.rows[self.name]
        start = self.trainer.arm.config.start
        if start is None:
            return picked
        if picked is None:
            picked = torch.arange(chunk.batch.size)
        return picked[chunk.batch.event_time_us[picked] >= microseconds_since_1970(start)]

    def commit(self, rows: int, skipped: Counts, id_kinds: Mapping[str, str], writer: CommitWriter) -> WindowCommit:
        """Ends the window; returns the commit to write, of this process's shards.

        Args:
            rows: number of rows of the stream in the window; a window without rows has a manifest only.
            skipped: rows that were left out, by column and reason.
            id_kinds: the type of each column of ids.
            writer: writes it. If in the background, the window before must be written, because the copies go into its
                buffers.

        Raises:
            RunError: the model has diverged, or a strategy has become another in each process.
        """
        arm = self.trainer.arm
        check_equal_replicas(arm.base, self.trainer.transfer.strategies, self.process_group)
        state, delta = self._state_to_save() if rows else (None, None)
        last, self._last = self._last, None
        self._divergence.check(self._window, state, last)
        shards = self._plan_shards(state, writer) if state else None
        counters = self._count_window(skipped, id_kinds, delta)
        if rows:
            self._predictions.gather_files()
            if self._supervision is not None:
                self._supervision.gather_files()
        if self.process_group.is_rank_zero:
            self.late_labels.write()
        self._owns_files = False  # the commit discards them from here on
        return WindowCommit(
            self.name,
            self.store,
            self._window,
            self._previous,
            self._read_state,
            counters,
            {"examples": self.counters.examples, "seconds": 0.0},
            self._predictions,
            self._supervision,
            shards,
            self._needed_us,
            writer.process_group,
            arm.config.keep.snapshots,
        )

    def _plan_shards(self, state: State, writer: CommitWriter) -> tuple[Shards, Shards]:
        """Plans the shards of weights and training state that this process writes, of copies if in the background."""
        weights, training = (plan_shards(tensors, self.process_group) for tensors in state)
        if writer.background:
            weights = weights.with_tensors(self._weights.copy(weights.tensors))
            training = training.with_tensors(self._training.copy(training.tensors))
        return weights, training

    def _count_window(self, skipped: Counts, id_kinds: Mapping[str, str], delta: Delta | None) -> dict[str, Any]:
        """Judges the window; returns the counters of its commit, summed over the processes."""
        trainer, counted = self.trainer, self.counters
        teachers = map_values(lambda coverage: coverage.add_up(self.process_group), counted.teachers)
        soft_labels = trainer.transfer.soft_labels.counters(self.process_group)
        judgement = self._gate.judge(self._window, counted.scores)
        self._held = judgement.held
        counters = {
            "examples": counted.examples,
            "seconds": counted.seconds,
            "skipped_rows": sum_counts(skipped),
            "skipped": skipped,
            "id_kinds": dict(id_kinds),
            "missed_windows": list(self._missed),
            "flops_per_example": counted.flops,
            "parameters": trainer.model.parameter_counts(),
            "dense_parameters": parameters_by_section(trainer.model),
            "learned": sorted(trainer.learned),
            "soft_labels": soft_labels,
            "teachers": map_values(Coverage.as_counters, teachers),
            "prequential": map_values(as_counters, counted.scores),
            **judgement.counters(),
        }
        if delta is not None:
            counters |= delta.as_counters()
        if self._initial is not None and self._previous == NONE:
            counters["init_from"] = self._initial.counters()
        return counters

    def _state_to_save(self) -> tuple[State, Delta | None]:
        """Returns weights and training state, of large tables perhaps the rows that have changed since the snapshot."""
        weights, training = self.trainer.weights(), self._training_state()
        tables = self.trainer.tables(weights, training)
        states = [TableState(weights, tables[0]), TableState(training, tables[1])]
        changed = self.trainer.parallel_model.take_changed_rows()
        saved, delta = self._deltas.next(self._window.index, states, changed)
        return (saved[0], saved[1]), delta

    def _training_state(self) -> dict[str, StateTensor]:
        feed = add_prefix(_FEED, self._feed.state())
        return self.trainer.training_state() | feed

    def _needed_us(self, window: Window) -> int:
        """Returns the earliest time of which a labeller or student that lags behind may still read a snapshot."""
        readers_us = self.store.readers.needed_us(self.name, microseconds(self.trainer.arm.config.supervision.delay))
        shared_us = min(self.shared.needed_us(self.name), readers_us)
        if not self.labelled_later:
            return min(window.end_us, shared_us)
        labelled = self.store.log.head("supervise", self.name)
        if labelled == NONE:
            return 0
        behind_us = self.store.log.load("supervise", self.name, labelled).window.end_us
        return min(behind_us - microseconds(self.trainer.arm.config.supervision.delay), shared_us)

    def close(self) -> None:
        """Removes the window's files if they were not handed to a commit."""
        if not self._owns_files:
            return
        self._predictions.discard()
        if self._supervision is not None:
            self._supervision.discard()

    def _prediction_columns(
        self, seen: Batch, probabilities: Mapping[str, Tensor], joined: Mapping[str, Joined]
    ) -> dict[str, Column]:
        """Builds the columns of the predictions file."""
        columns: dict[str, Column] = {
            "example_id": seen.example_id.numpy(),
            "window": np.full(seen.size, self._window.index, np.int32),
            "group": seen.group.numpy(),
        }
        columns |= as_columns(probabilities)
        columns |= {f"label_{task}": seen.labels[task].numpy() for task in self.tasks}
        columns |= {f"oracle_{task}": seen.oracle[task].numpy() for task in self.oracles}
        columns |= {f"weight_{task}": seen.weights[task].numpy() for task in self.weighted}
        for column, (teacher, task) in self._external.items():
            supervision = joined[teacher].supervision
            columns[column] = supervision.probabilities[task].where(supervision.hit[task], math.nan).numpy()
        return columns

    def _write(self, rows: ModelChunk, predictions: Mapping[str, Column], supervision: SupervisionRows) -> None:
        """Appends the rows of a chunk to the window's files."""
        self._predictions.append(predictions, rows.position)
        if self._supervision is not None:
            index = self._window.index
            # The version is the window before by convention, because the model changes with each batch: the watermark
            # of each row says how far it had trained.
            self._supervision.append(supervision_columns(supervision, index, index - 1), rows.position)

    def _count(
        self, seen: Batch, rows: ModelChunk, probabilities: Mapping[str, Tensor], supervision: SupervisionRows
    ) -> None:
        """Adds a chunk's rows, on all processes, to the counters.

        Raises:
            RunError: predictions or stored vectors are not finite; on every process.
        """
        kinds = self.trainer.model.label_kinds
        sums = task_sums(probabilities, seen.labels, seen.weights, kinds)
        stored: list[Tensor] = []
        for vector in (*supervision.vectors.values(), supervision.embedding):
            if vector is not None:
                stored += vector.numbers()
        counts = [rows_not_finite(list(probabilities.values())), rows_not_finite(stored)]
        # In a single tensor, because each all-gather costs a round trip.
        summed = torch.cat([*sums.values(), torch.tensor(counts, dtype=torch.float64)])
        total = self.process_group.all_gather(summed).sum(dim=0)
        not_finite = total[-2:].tolist()
        for count, name in zip(not_finite, ("predictions", "embeddings or states"), strict=True):
            if count:
                symptom = f"its {name} of {count:.0f} of {rows.examples} examples are NaN or infinite"
                tensor = self._divergence.first_not_finite((self.trainer.weights(), self._training_state()))
                raise self._divergence.error(
                    self._window, f"{symptom}, and so are values of {tensor}" if tensor else symptom
                )
        self.counters.examples += rows.examples
        of_task = torch.split(total[:-2], [counted.numel() for counted in sums.values()])
        self.counters.add_scores(dict(zip(sums, of_task, strict=True)), kinds)
