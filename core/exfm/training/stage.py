"""One arm's part in a window: rows in, predictions and supervision out, and the commit.

Legend: B examples.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.data.stream import Chunk
from exfm.interfaces.data_source import Window
from exfm.interfaces.schema import FeatureSchema
from exfm.supervision.commits import Commit
from exfm.supervision.joiner import Joined, SupervisionIndex, SupervisionRows
from exfm.supervision.row_files import RowWriter, predictions_schema, row_file, supervision_schema
from exfm.supervision.store import Store
from exfm.training.trainer import StepLabels, Trainer


@dataclass
class TeacherCounters:
    """How much of a window's examples a teacher had supervised, and how old that was in all."""

    examples: int = 0
    hits: int = 0
    age_us: int = 0

    def add(self, joined: Joined) -> None:
        """Counts a batch."""
        self.examples += joined.found.numel()
        self.hits += int(joined.found.sum())
        self.age_us += int(joined.age_us.sum())


@dataclass
class WindowCounters:
    """What a stage's manifest records of a window; the log loss is the first task's, for the progress bar."""

    examples: int = 0
    seconds: float = 0.0
    log_loss: float = 0.0
    positives: float = 0.0
    teachers: dict[str, TeacherCounters] = field(default_factory=dict)

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
        supervises: whether its forward pass is kept as supervision.
    """

    def __init__(
        self, trainer: Trainer, store: Store, schema: FeatureSchema, prompt: tuple[str, ...], supervises: bool
    ) -> None:
        self.trainer = trainer
        self.name = trainer.arm.name
        self.tasks = trainer.arm.tasks
        self.store = store
        self.oracles = tuple(label.name for label in schema.labels if label.oracle and label.name in self.tasks)
        self.prompt = tuple(task for task in self.tasks if task in prompt)
        self.supervises = supervises
        self.flops: float | None = None
        self.counters = WindowCounters()
        self._continues = False

    def begin(self, window: Window) -> None:
        """Opens a window's files; the first time, brings the model to the state after the last committed window."""
        if not self._continues:
            self._resume()
        self.counters = WindowCounters()
        self._window = window
        self._watermark_us = window.start_us
        predictions = row_file("predictions", self.name, window.index)
        self._predictions = RowWriter(self.store.workspace, predictions, predictions_schema(self.tasks, self.oracles))
        self._supervision: RowWriter | None = None
        if self.supervises:
            supervision = row_file("supervision", self.name, window.index)
            self._supervision = RowWriter(self.store.workspace, supervision, supervision_schema(self.tasks))

    def _resume(self) -> None:
        self._continues = True
        committed = self.store.log.windows("train", self.name)
        if not committed:
            return
        snapshots = self.store.snapshots
        snapshot = snapshots.get(self.name, committed[-1])
        self.trainer.load_weights(snapshots.load(snapshot.weights))
        self.trainer.load_training_state(snapshots.load(snapshot.training))
        self.trainer.learned = set(snapshot.learned)
        self.flops = self.store.log.load("train", self.name, snapshot.version).counters["flops_per_example"]

    def consume(self, chunk: Chunk, teachers: Mapping[str, SupervisionIndex]) -> SupervisionRows:
        """Predicts the arm's rows of a chunk and trains on them, batch by batch; returns its supervision of them."""
        start = time.perf_counter()
        learn = StepLabels(self.prompt, transfer=True)
        predicted: dict[str, list[Tensor]] = {task: [torch.zeros(0)] for task in self.tasks}
        taught: dict[str, list[Tensor]] = {task: [torch.zeros(0)] for task in self.tasks}
        watermarks = [torch.zeros(0, dtype=torch.int64)]
        index = self._rows(chunk)
        for batch in self._batches(chunk, index):
            supervision = {}
            for name in self.trainer.arm.teachers:
                joined = teachers[name].join(batch.example_id, batch.event_time_us)
                self.counters.teachers.setdefault(name, TeacherCounters()).add(joined)
                supervision[name] = joined.supervision
            if self.flops is None:
                self.flops = self.trainer.flops_per_example(batch)
            learned = frozenset(self.trainer.learned)
            for task, values in self.trainer.step(batch, supervision, learn).items():
                predicted[task].append(values.cpu())
                taught[task].append(values.cpu() if task in learned else torch.full((batch.size,), math.nan))
            self.trainer.observe(batch)
            watermarks.append(torch.full((batch.size,), self._watermark_us))
            self._watermark_us = int(batch.event_time_us[-1])
        seen = chunk.batch.only(frozenset(), torch.zeros(0, dtype=torch.int64)).select(index)
        made = SupervisionRows(
            seen.example_id, {task: torch.cat(values) for task, values in taught.items()}, torch.cat(watermarks)
        )
        self._record(seen, {task: torch.cat(values) for task, values in predicted.items()}, made)
        self.counters.seconds += time.perf_counter() - start
        return made

    def consume_late(self, chunk: Chunk, tasks: tuple[str, ...]) -> None:
        """Trains on labels that became known after their examples had been predicted."""
        learn = StepLabels(tuple(task for task in self.tasks if task in tasks), transfer=False)
        start = time.perf_counter()
        for batch in self._batches(chunk, self._rows(chunk)) if learn.tasks else ():
            self.trainer.step(batch, {}, learn)
        self.counters.seconds += time.perf_counter() - start

    def commit(self, skipped_rows: int) -> None:
        """Makes the window's supervision visible, then its predictions and the new snapshot."""
        trainer, log = self.trainer, self.store.log
        if self._supervision is not None:
            counted = {"examples": self.counters.examples}
            log.add("supervise", self.name, Commit(self._window, counted, {"rows": self._supervision.close()}))
        files = {"rows": self._predictions.close()}
        files |= self.store.snapshots.write(self.name, self._window, trainer.weights(), trainer.training_state())
        counters = {
            "examples": self.counters.examples,
            "seconds": self.counters.seconds,
            "skipped_rows": skipped_rows,
            "flops_per_example": self.flops,
            "parameters": trainer.model.parameter_counts(),
            "learned": sorted(trainer.learned),
            "teachers": {name: vars(counted) for name, counted in self.counters.teachers.items()},
        }
        log.add("train", self.name, Commit(self._window, counters, files))
        self.store.snapshots.retire(self.name, self._window, trainer.arm.config.supervision.delay)

    def close(self) -> None:
        """Discards what was written of the window and not committed."""
        self._predictions.discard()
        if self._supervision is not None:
            self._supervision.discard()

    def _rows(self, chunk: Chunk) -> Tensor:
        picked = chunk.rows[self.name]
        return torch.arange(chunk.batch.size) if picked is None else picked

    def _batches(self, chunk: Chunk, index: Tensor) -> Iterator[Batch]:
        if index.numel() == 0:
            return
        narrowed = self.trainer.model.narrow(chunk.batch)
        for part in index.tensor_split(math.ceil(index.numel() / self.trainer.arm.config.batch_size)):
            yield narrowed.select(part)

    def _record(self, seen: Batch, probabilities: Mapping[str, Tensor], made: SupervisionRows) -> None:
        window = np.full(seen.size, self._window.index, np.int32)
        columns = {"example_id": seen.example_id.numpy(), "window": window}
        predicted = {f"prediction_{task}": values.numpy() for task, values in probabilities.items()}
        labels = {f"label_{task}": seen.labels[task].numpy() for task in self.tasks}
        oracle = {f"oracle_{task}": seen.oracle[task].numpy() for task in self.oracles}
        self._predictions.append({**columns, "group": seen.group.numpy(), **predicted, **labels, **oracle})
        if self._supervision is not None:
            snapshot = np.full(seen.size, self._window.index - 1, np.int32)
            times = {"event_time": seen.event_time_us.numpy(), "watermark": made.watermark_us.numpy()}
            taught = {f"prediction_{task}": values.numpy() for task, values in made.probabilities.items()}
            self._supervision.append({**columns, **taught, "snapshot": snapshot, **times})
        first = self.tasks[0]
        loss = torch.nn.functional.binary_cross_entropy(probabilities[first], seen.labels[first], reduction="sum")
        self.counters.examples += seen.size
        self.counters.log_loss += float(loss)
        self.counters.positives += float(seen.labels[first].sum())
