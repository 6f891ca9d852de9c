"""Reads what teachers served: the supervision that a run keeps, and the files of teachers from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from exfm.config.experiment import ExternalTeacher
from exfm.config.external_files import ExternalFiles
from exfm.diagnosis.lessons import ServedRows
from exfm.errors import ConfigError
from exfm.evaluation.metrics import Ints
from exfm.interfaces.data_source import Window
from exfm.supervision.store import Store


class StoredTeacher:
    """Reads supervision of one task by a model of the run, from the run's folder."""

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


def _resolved(section: Mapping[str, Any], name: str) -> Any:
    """Resolves the references to environment variables that a run's config keeps."""
    try:
        return OmegaConf.to_container(OmegaConf.create(dict(section)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error


class ExternalRowsOfTask:
    """Holds supervision of one task by a teacher from elsewhere, as in training: 12 bytes per row.

    Raises:
        ConfigError: its files are not where they were, or a reference to an environment variable has no value.
    """

    def __init__(self, teacher: str, config: Mapping[str, Any], task: str, name: str) -> None:
        column = {task: config["predictions"][task]}
        section = _resolved({**config, "predictions": column}, f"{name}: teachers.{teacher}")
        rows = ExternalFiles(ExternalTeacher.model_validate(section), f"{name}: teachers.{teacher}").read()
        order = np.argsort(rows.example_id, kind="stable")
        self._sorted_id, self._probability = rows.example_id[order], rows.probabilities[task][order]

    def read(self, window: Window, example_id: Ints) -> ServedRows:
        """Looks up the ids."""
        if not self._sorted_id.size:
            return ServedRows(example_id[:0], np.zeros(0))
        index = np.minimum(np.searchsorted(self._sorted_id, example_id), self._sorted_id.size - 1)
        is_hit = self._sorted_id[index] == example_id
        return ServedRows(example_id[is_hit], self._probability[index[is_hit]])
