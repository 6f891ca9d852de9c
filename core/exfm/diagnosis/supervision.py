"""Reads what teachers served: the supervision that a run keeps, and the files of teachers from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from exfm.config.experiment import ExternalTeacher
from exfm.config.external_files import ExternalFiles
from exfm.diagnosis.lessons import ServedRows
from exfm.evaluation.metrics import Ints
from exfm.interfaces.data_source import Window
from exfm.supervision.store import Store


class StoredTeacher:
    """Supervision of one task by a model of the run, from the run's folder."""

    def __init__(self, store: Store, teacher: str, task: str) -> None:
        self._store = store
        self._teacher = teacher
        self._column = f"prediction_{task}"
        self._windows = set(store.log.windows("supervise", teacher))

    def read(self, window: Window, example_id: Ints) -> ServedRows:
        """Reads all rows of a window; the ids asked for are among them.

        Raises:
            RunError: the file is missing or corrupt.
        """
        files = self._store.log.load("supervise", self._teacher, window.index).files if self._has(window) else {}
        if not files:
            return ServedRows(example_id[:0], np.zeros(0))
        names = ["example_id", "event_time", "watermark", self._column]
        with self._store.workspace.open_checked(files["rows"]) as file:
            table = pq.read_table(file, columns=names)  # embeddings and states are not read
        time_us, watermark_us = (table.column(name).cast(pa.int64()).to_numpy() for name in ("event_time", "watermark"))
        return ServedRows(
            table.column("example_id").to_numpy(),
            table.column(self._column).to_numpy(),
            (time_us - watermark_us) / 1e6,
            time_us,
        )

    def _has(self, window: Window) -> bool:
        return window.index in self._windows


class ExternalRowsOfTask:
    """Supervision of one task by a teacher from elsewhere, in memory as while it teaches: 12 bytes per row."""

    def __init__(self, teacher: str, config: Mapping[str, Any], task: str, place: str) -> None:
        resolved = OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True)
        assert isinstance(resolved, dict)
        column = {task: resolved["predictions"][task]}
        files = ExternalFiles(
            ExternalTeacher.model_validate({**resolved, "predictions": column}), f"{place}: teachers.{teacher}"
        )
        rows = files.read()
        order = np.argsort(rows.example_id, kind="stable")
        self._sorted_id, self._probability = rows.example_id[order], rows.probabilities[task][order]

    def read(self, window: Window, example_id: Ints) -> ServedRows:
        """Looks the ids up."""
        if not self._sorted_id.size:
            return ServedRows(example_id[:0], np.zeros(0))
        index = np.minimum(np.searchsorted(self._sorted_id, example_id), self._sorted_id.size - 1)
        found = self._sorted_id[index] == example_id
        return ServedRows(example_id[found], self._probability[index[found]])
