"""Labels examples with an earlier published snapshot: forward only, once per example however many students read it."""

from __future__ import annotations

import math
import time

import numpy as np
import torch

from exfm.config.checks import Arm
from exfm.data.stream import Chunk
from exfm.interfaces.data_source import Window
from exfm.supervision.commits import Commit
from exfm.supervision.joiner import SupervisionRows
from exfm.supervision.row_files import RowWriter, row_file, supervision_schema
from exfm.supervision.snapshots import Snapshot
from exfm.supervision.store import Store
from exfm.training.trainer import Trainer


class Labeller:
    """Supervises a teacher's students with the newest snapshot that the teacher's delay allows.

    Args:
        trainer: a model of the teacher's shape; its weights are replaced by those of snapshots.
        students: names of the arms that learn from it: their traffic is labelled, each example once.
    """

    def __init__(self, trainer: Trainer, store: Store, students: tuple[str, ...]) -> None:
        self.trainer = trainer
        self.teacher: Arm = trainer.arm
        self.store = store
        self.students = students
        self.seconds = 0.0
        self._loaded: int | None = None

    def begin(self, window: Window) -> None:
        """Takes the newest snapshot whose watermark lies a delay before the window, and opens the window's file."""
        delay = self.teacher.config.supervision.delay
        self._snapshot: Snapshot | None = self.store.snapshots.newest(self.teacher.name, window.start_us, delay)
        if self._snapshot is not None and self._snapshot.version != self._loaded:
            self.trainer.load_weights(self.store.snapshots.load(self._snapshot.weights))
            self._loaded = self._snapshot.version
        self._window = window
        self._examples = 0
        self._rows = RowWriter(
            self.store.workspace,
            row_file("supervision", self.teacher.name, window.index),
            supervision_schema(self.teacher.tasks),
        )

    def label(self, chunk: Chunk) -> SupervisionRows:
        """Supervises the union of the students' rows of a chunk; nothing before there is a snapshot."""
        start = time.perf_counter()
        index = self._union(chunk)
        batch = self.trainer.model.narrow(chunk.batch)
        size = self.teacher.config.batch_size
        parts = index.tensor_split(max(math.ceil(index.numel() / size), 1)) if index.numel() else ()
        predicted = [self.trainer.predict(batch.select(part)) for part in parts]
        probabilities = {
            task: torch.cat([torch.zeros(0), *(part[task].cpu() for part in predicted)]) for task in self.teacher.tasks
        }
        for task in probabilities.keys() - (self._snapshot.learned if self._snapshot is not None else ()):
            probabilities[task] = torch.full_like(probabilities[task], math.nan)
        watermark_us = self._snapshot.watermark_us if self._snapshot is not None else 0
        rows = SupervisionRows(chunk.batch.example_id[index], probabilities, torch.full((index.numel(),), watermark_us))
        self._append(rows, chunk.batch.event_time_us[index].numpy())
        self.seconds += time.perf_counter() - start
        return rows

    def commit(self) -> None:
        """Makes the window's supervision visible."""
        counted = {"examples": self._examples}
        self.store.log.add("supervise", self.teacher.name, Commit(self._window, counted, {"rows": self._rows.close()}))

    def close(self) -> None:
        """Discards what was written of the window and not committed."""
        self._rows.discard()

    def _union(self, chunk: Chunk) -> torch.Tensor:
        wanted = torch.zeros(chunk.batch.size, dtype=torch.bool)
        for student in self.students if self._snapshot is not None else ():
            picked = chunk.rows[student]
            wanted[slice(None) if picked is None else picked] = True
        return wanted.nonzero().squeeze(1)

    def _append(self, rows: SupervisionRows, event_time_us: np.ndarray) -> None:
        count = rows.example_id.numel()
        self._examples += count
        version = self._snapshot.version if self._snapshot is not None else -1
        self._rows.append(
            {
                "example_id": rows.example_id.numpy(),
                "window": np.full(count, self._window.index, np.int32),
                "event_time": event_time_us,
                **{f"prediction_{task}": values.numpy() for task, values in rows.probabilities.items()},
                "snapshot": np.full(count, version, np.int32),
                "watermark": rows.watermark_us.numpy(),
            }
        )
