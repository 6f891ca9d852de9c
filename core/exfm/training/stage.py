"""One arm's part in a window: rows in, predictions and supervision out, and the commit.

Legend: B examples.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.data.skips import Counts, sum_counts
from exfm.distributed.chunk_exchange import Part, Parts, SpreadChunk
from exfm.distributed.row_gatherer import RowGatherer
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.interfaces.duration import microseconds
from exfm.interfaces.schema import FeatureSchema
from exfm.modeling.cost import flops_by_section, parameters_by_section
from exfm.storage.commits import NONE, WindowRead
from exfm.storage.finite import check_snapshot, first_not_finite, is_finite
from exfm.storage.snapshots import Snapshot, same_on_all
from exfm.supervision.coverage import Coverage
from exfm.supervision.joiner import Joined, Joiner, SupervisionRows, slice_output
from exfm.supervision.row_files import (
    predictions_schema,
    row_file,
    supervision_columns,
    supervision_schema,
    teacher_column,
)
from exfm.supervision.store import Store
from exfm.training.commit_writer import ReusableBuffers, WindowCommit
from exfm.training.divergence import diverged
from exfm.training.model_output import ModelOutput
from exfm.training.trainer import StepLabels, Trainer, Turn
from exfm.transfer.chunk_vectors import ChunkVectors
from exfm.transfer.teacher_parameters import TeacherParameters
from exfm.transfer.vector_feed import VectorFeed

_FEW = 64
"""Examples on which a window's FLOPs are counted, as counting is slow, and which a window's model must predict."""

_FEED = "feed."
"""State-dict prefix of teacher vectors still in flight, younger than ``supervision.lag``."""

logger = logging.getLogger(__name__)


@dataclass
class WindowCounters:
    """What a stage's manifest records of a window; the log loss is the first task's, for the progress bar.

    FLOPs are per example, by part of the model.
    """

    examples: int = 0
    seconds: float = 0.0
    log_loss: float = 0.0
    positives: float = 0.0
    flops: dict[str, float] = field(default_factory=dict)
    teachers: dict[str, Coverage] = field(default_factory=dict)

    @property
    def ne(self) -> float | None:
        """NE of the first task so far; None until both classes have been seen."""
        rate = self.positives / self.examples if self.examples else 0.0
        if not 0 < rate < 1:
            return None
        entropy = -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate))
        return self.log_loss / self.examples / entropy


class Stage:
    """Trains one arm through the windows of a stream, committing each.

    Args:
        trainer: the model.
        store: where windows are committed.
        schema: the stream's schema.
        prompt: tasks whose labels are known together with the example.
        teaches: whether other models learn from it. Without a delay, its forward pass is kept as supervision; with
            one, a labeller asks for its snapshots.
        shared: the parameters that students take from their teachers' snapshots.
        external: tasks of the teachers from elsewhere, whose predictions are kept beside the model's.
    """

    def __init__(
        self,
        trainer: Trainer,
        store: Store,
        schema: FeatureSchema,
        prompt: tuple[str, ...],
        teaches: bool,
        shared: TeacherParameters,
        external: Mapping[str, Collection[str]],
    ) -> None:
        self.trainer = trainer
        self.process_group = trainer.plan.process_group
        self.name = trainer.arm.name
        self.tasks = trainer.arm.tasks
        self.store = store
        self.oracles = tuple(label.name for label in schema.labels if label.oracle and label.name in self.tasks)
        self._external = {
            teacher_column(name, task): (name, task)
            for name in trainer.arm.teachers
            for task in external.get(name, ())
            if task in self.tasks
        }
        self.prompt = tuple(task for task in self.tasks if task in prompt)
        delayed = trainer.arm.config.supervision.delay > timedelta(0)
        self.supervises = teaches and not delayed
        self.labelled_later = teaches and delayed
        self.shared = shared
        strategies = trainer.transfer.strategies
        self._taken = {
            name: {task for one in strategies if name in one.config.teachers for task in one.teacher_tasks.values()}
            for name in trainer.arm.teachers
        }
        self._feed = VectorFeed(trainer.transfer.parameters.fed_tables(), shared.lags_us)
        self.counters = WindowCounters()
        self._constant_flops: dict[str, float] = {}
        self._weights, self._training = ReusableBuffers(), ReusableBuffers()
        self._last: Batch | None = None

    def begin(self, window: Window, previous: int, read: WindowRead, missed: Sequence[int] = ()) -> None:
        """Opens a window's files, and takes what the model takes of its teachers' parts.

        Args:
            previous: index of the window that the stage has committed before.
            read: the state of the stream in which the window is read.
            missed: windows since the previous one whose rows other models have trained on, and that are gone.
        """
        self.counters = WindowCounters()
        start = time.perf_counter()
        trainer = self.trainer
        trainer.transfer.begin()
        self.shared.load_into(trainer.transfer.parameters, trainer.growth, self.process_group, window)
        self._feed.begin()
        self.counters.seconds = time.perf_counter() - start
        self._window, self._previous, self._read_state, self._missed = window, previous, read, missed
        if missed:
            logger.warning(
                "%s: windows %s were trained on by other models of the run and are in the stream no more: left out",
                *(self.name, ", ".join(map(str, missed))),
            )
        self._watermark_us = window.start_us
        predictions = row_file("predictions", self.name, window.index)
        self._predictions = self._rows_file(predictions, predictions_schema(self.tasks, self.oracles, self._external))
        self._owns_files = True
        self._supervision: RowGatherer | None = None
        if self.supervises:
            supervision = row_file("supervision", self.name, window.index)
            schema = supervision_schema(self.tasks, self.name, self.trainer.embedding, self.trainer.vectors)
            self._supervision = self._rows_file(supervision, schema)

    def _rows_file(self, path: str, schema: pa.Schema) -> RowGatherer:
        return RowGatherer(self.process_group, self.store.workspace, path, schema)

    def resume(self) -> int:
        """Brings the model to the newest committed state that can be read; returns its window, ``NONE`` for none.

        A corrupt snapshot is named and the one before it is taken: the windows since are done again.

        Raises:
            RunError: there are snapshots and none can be read, or one is not finite.
        """
        failure: RunError | None = None
        candidates = self.store.snapshots.newest_first(self.name, sys.maxsize)
        for snapshot in same_on_all(self.process_group, candidates):
            weights, training, error = self._read(snapshot)
            if self.process_group.all_agree(error is None):
                for tensors in (weights, training):
                    check_snapshot(snapshot, tensors, self.trainer.constants, self.store.workspace.url)
                self.trainer.load_weights(weights)
                self.trainer.load_training_state(training)
                feed = {name.removeprefix(_FEED): value for name, value in training.items() if name.startswith(_FEED)}
                self._feed.load_state(feed)
                self.trainer.learned = set(snapshot.learned)
                return snapshot.version
            error = error or RunError(f"snapshot {snapshot.version} of {self.name!r}: another process cannot read it")
            logger.warning("%s; going back to the snapshot before it", error)
            failure = failure or error
        if failure is not None:
            raise failure
        return NONE

    def _read(self, snapshot: Snapshot) -> tuple[dict[str, Tensor], dict[str, Tensor], RunError | None]:
        """Reads a snapshot's weights and training state, or says why they cannot be read."""
        try:
            memory = self.trainer.memory()
            weights = self.store.snapshots.load(snapshot.weights, memory)
            return weights, self.store.snapshots.load(snapshot.training, memory), None
        except RunError as error:
            return {}, {}, error

    def consume(self, chunk: SpreadChunk, teachers: Mapping[str, Joiner], vectors: ChunkVectors) -> SupervisionRows:
        """Predicts the arm's rows of a chunk and trains on them, batch by batch; returns its supervision of them.

        Args:
            teachers: by name.
            vectors: those that the teachers have stored for the chunk.
        """
        start = time.perf_counter()
        learn = StepLabels(self.prompt, transfer=True)
        parts = chunk.parts(chunk.rows[self.name], self.trainer.arm.config.batch_size)
        seen = chunk.batch.only(frozenset(), torch.zeros(0, dtype=torch.int64)).select(parts.index)
        joined = {name: teachers[name].join(seen.example_id, seen.event_time_us) for name in self.trainer.arm.teachers}
        for name, found in joined.items():
            self.counters.teachers.setdefault(name, Coverage()).add(found, self._taken[name])
        forward = ModelOutput(self.tasks, self.trainer.embedding, self.trainer.vectors)
        self._feed.open(vectors, parts.index)
        first = 0
        for turn, (batch, part) in self._in_turn(chunk, parts):
            rows = slice(first, first + part.own)
            first += part.own
            supervision = {name: slice_output(found.supervision, rows) for name, found in joined.items()}
            if not self.counters.flops:
                self.counters.flops = self._flops(batch)
            self._feed.override(rows)
            learned = frozenset(self.trainer.learned)
            made = self.trainer.step(batch, supervision, learn, part.counts, turn)
            self.trainer.observe(batch, part.own)
            self._last = batch
            rows_after = self.trainer.rows(batch) if self.supervises else {}
            forward.add(made.with_vectors(rows_after).first(part.own), learned, self._watermark_us)
            self._watermark_us = part.newest_us
        self._feed.close()
        taught = forward.supervision(seen)
        self._record(seen, parts, forward.probabilities(), taught, joined)
        self.counters.seconds += time.perf_counter() - start
        return taught

    def _flops(self, batch: Batch) -> dict[str, float]:
        """FLOPs per example: of a model that reads no histories always the same, and counted once."""
        if not self._constant_flops:
            few = batch.select(torch.arange(min(batch.size, _FEW)))
            counted = flops_by_section(self.trainer.model, few)
            if batch.sequences:
                return counted
            self._constant_flops = counted
        return self._constant_flops

    def consume_late(self, chunk: SpreadChunk, tasks: tuple[str, ...]) -> None:
        """Trains on labels that became known after their examples had been predicted."""
        learn = StepLabels(tuple(task for task in self.tasks if task in tasks), transfer=False)
        start = time.perf_counter()
        if learn.tasks:
            parts = chunk.parts(chunk.rows[self.name], self.trainer.arm.config.batch_size)
            for turn, (batch, part) in self._in_turn(chunk, parts):
                self.trainer.step(batch, {}, learn, part.counts, turn)
                self._last = batch
        self.counters.seconds += time.perf_counter() - start

    def _in_turn(self, chunk: SpreadChunk, parts: Parts) -> Iterator[tuple[Turn, tuple[Batch, Part]]]:
        """The batches, each with its place among those of a step."""
        accumulate = self.trainer.arm.config.optimizer.dense.accumulate
        for number, batch in enumerate(chunk.batches(parts, self.trainer.model)):
            yield Turn.at(number, len(parts.batches), accumulate), batch

    def commit(self, rows: int, skipped: Counts, id_kinds: Mapping[str, str], copy: bool) -> WindowCommit | None:
        """Ends the window; on any process but the first nothing remains to be done.

        Args:
            rows: how many rows of the stream were read; of a window without any only the manifest is kept.
            skipped: rows that were left out, by column and reason.
            id_kinds: what each column of ids holds.
            copy: whether training goes on while the window is written; that of the window before must have ended.
        """
        trainer = self.trainer
        # All processes take part in these.
        state = (trainer.weights(), self._training_state()) if rows else None
        self._check_state(state)
        teachers = {name: self._of_all(counted).as_counters() for name, counted in self.counters.teachers.items()}
        if not self.process_group.is_rank_zero:
            return None
        if state and copy:
            weights, training = state
            state = self._weights.copy(weights), self._training.copy(training)
        counters = {
            "examples": self.counters.examples,
            "seconds": self.counters.seconds,
            "skipped_rows": sum_counts(skipped),
            "skipped": skipped,
            "id_kinds": dict(id_kinds),
            "missed_windows": list(self._missed),
            "flops_per_example": self.counters.flops,
            "parameters": trainer.model.parameter_counts(),
            "dense_parameters": parameters_by_section(trainer.model),
            "learned": sorted(trainer.learned),
            "soft_labels": trainer.transfer.soft_labels.counters(),
            "teachers": teachers,
        }
        self._owns_files = False
        return WindowCommit(
            self.name,
            self.store,
            self._window,
            self._previous,
            self._read_state,
            counters,
            self._supervision_counters(),
            self._predictions,
            self._supervision,
            state,
            self._needed_us,
        )

    def _check_state(self, state: tuple[dict[str, Tensor], dict[str, Tensor]] | None) -> None:
        """Raises RunError, on every process, where what would be committed is not finite, or predicts what is not."""
        checked = state if state and self.process_group.is_rank_zero else ()
        names = [first_not_finite(tensors, self.trainer.constants) for tensors in checked]
        name = self.process_group.broadcast_bytes(next(filter(None, names), "").encode()).decode()
        if name:
            raise self._diverged(f"{name} holds NaN or infinite values")
        last, self._last = self._last, None
        if last is not None:
            made = self.trainer.predict(last.select(torch.arange(min(last.size, _FEW))))
            wrong = torch.tensor(_not_finite([values.cpu() for values in made.probabilities.values()]))
            if self.process_group.all_gather(wrong).any():  # numbers so large that the next window would be NaN
                raise self._diverged("after its last step its predictions are NaN or infinite")

    def _diverged(self, symptom: str) -> RunError:
        newest = next(self.store.snapshots.newest_first(self.name, sys.maxsize), None)
        last = None if newest is None else self.store.log.load("train", self.name, newest.version).window
        return diverged(self.trainer.arm, self._window, symptom, last)

    def _training_state(self) -> dict[str, Tensor]:
        return self.trainer.training_state() | {f"{_FEED}{name}": one for name, one in self._feed.state().items()}

    def _of_all(self, counted: Coverage) -> Coverage:
        """The counts of all processes together."""
        return Coverage.from_vector(
            self.process_group.all_gather(torch.from_numpy(counted.as_vector())).sum(dim=0).numpy()
        )

    def _supervision_counters(self) -> dict[str, float]:
        return {"examples": self.counters.examples, "seconds": 0.0}

    def _needed_us(self, window: Window) -> int:
        """The earliest time for which somebody who may lag behind, labeller or student, can still want a snapshot."""
        shared_us = self.shared.needed_us(self.name)
        if not self.labelled_later:
            return min(window.end_us, shared_us)
        labelled = self.store.log.head("supervise", self.name)
        if labelled == NONE:
            return 0
        behind_us = self.store.log.load("supervise", self.name, labelled).window.end_us
        return min(behind_us - microseconds(self.trainer.arm.config.supervision.delay), shared_us)

    def close(self) -> None:
        """Discards what was written of the window and not committed."""
        if not self._owns_files:
            return
        self._predictions.discard()
        if self._supervision is not None:
            self._supervision.discard()

    def _record(
        self,
        seen: Batch,
        parts: Parts,
        probabilities: Mapping[str, Tensor],
        made: SupervisionRows,
        joined: Mapping[str, Joined],
    ) -> None:
        window = np.full(seen.size, self._window.index, np.int32)
        columns = {"example_id": seen.example_id.numpy(), "window": window}
        predicted = {f"prediction_{task}": values.numpy() for task, values in probabilities.items()}
        labels = {f"label_{task}": seen.labels[task].numpy() for task in self.tasks}
        oracle = {f"oracle_{task}": seen.oracle[task].numpy() for task in self.oracles}
        columns |= {"group": seen.group.numpy(), **predicted, **labels, **oracle}
        for column, (teacher, task) in self._external.items():
            supervision = joined[teacher].supervision
            columns[column] = supervision.probabilities[task].where(supervision.hit[task], math.nan).numpy()
        self._predictions.append(columns, parts.order)
        if self._supervision is not None:
            rows = supervision_columns(made, self._window.index, self._window.index - 1)
            self._supervision.append(rows, parts.order)
        first = self.tasks[0]
        finite = probabilities[first].nan_to_num(0.5)  # of NaN torch computes no loss
        loss = torch.nn.functional.binary_cross_entropy(finite, seen.labels[first], reduction="sum")
        vectors = [*made.vectors.values(), *([] if made.embedding is None else [made.embedding])]
        stored = [numbers for vector in vectors for numbers in vector.numbers()]
        bad = torch.tensor([_not_finite(list(probabilities.values())), _not_finite(stored)], dtype=loss.dtype)
        sums = torch.cat([torch.stack([loss, seen.labels[first].sum()]), bad])
        examples = sum(sum(part.counts) for part in parts.batches)
        log_loss, positives, *not_finite = self.process_group.all_gather(sums).sum(dim=0).tolist()
        for count, name in zip(not_finite, ("predictions", "embeddings or states"), strict=True):
            if count:
                raise self._diverged(f"its {name} of {count:.0f} of {examples} examples are NaN or infinite")
        self.counters.examples += examples
        self.counters.log_loss += log_loss
        self.counters.positives += positives


def _not_finite(columns: Sequence[Tensor]) -> int:
    """How many of S rows of columns, (S,) or (S, K), hold a number that is not finite."""
    wrong = [~column.isfinite().view(column.shape[0], -1).all(dim=1) for column in columns if not is_finite(column)]
    return int(torch.stack(wrong).any(dim=0).sum()) if wrong else 0
