"""Reads served predictions of teachers: the supervision in a run's folder, and the files of teachers from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from exfm.config.experiment import ExternalTeacher
from exfm.config.external_files import ExternalFiles
from exfm.diagnosis.taught_rows import ServedRows
from exfm.errors import ConfigError
from exfm.evaluation.metrics import Ints
from exfm.interfaces.data_source import Window
from exfm.supervision.store import Store
from exfm.supervision.stored_rows import read_rows


class StoredTeacher:
    """Reads supervision of a task by a model of the run, from the run's folder."""

    def __init__(self, store: Store, teacher: str, task: str) -> None:
        self._column = f"prediction_{task}"
        self._home = store.home(teacher)

    def read(self, window: Window, example_id: Ints) -> ServedRows:
        """Reads all rows of a window; the requested ids are among them.

        Raises:
            RunError: a file is missing or corrupt.
        """
        store = self._home.store
        tables: list[pa.Table] = []
        for record in store.supervision_files(self._home.model, window):
            # Embeddings and states are most of the file: they are not read.
            tables.append(read_rows(store.workspace, record, ["example_id", "event_time", "watermark", self._column]))
        if not tables:
            return ServedRows(example_id[:0], np.zeros(0))
        table = pa.concat_tables(tables)
        time_us, watermark_us = (table.column(name).cast(pa.int64()).to_numpy() for name in ("event_time", "watermark"))
        return ServedRows(
            table.column("example_id").to_numpy(),
            table.column(self._column).to_numpy(),
            (time_us - watermark_us) / 1e6,
            time_us,
        )


def _resolved(section: Mapping[str, Any], name: str) -> Any:
    """Resolves the references to environment variables in a section of a run's config.

    A run's config keeps them unresolved, because their values may be secrets.
    """
    try:
        return OmegaConf.to_container(OmegaConf.create(dict(section)), resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{name}: {' '.join(str(error).split())}") from error


class ExternalRowsOfTask:
    """Holds supervision of a task by a teacher from elsewhere in memory, as in training: 12 bytes per row.

    Raises:
        ConfigError: the teacher's files have moved, or a reference to an environment variable has no value.
    """

    def __init__(self, teacher: str, config: Mapping[str, Any], task: str, name: str) -> None:
        column = {task: config["predictions"][task]}
        section = _resolved({**config, "predictions": column}, f"{name}: teachers.{teacher}")
        rows = ExternalFiles(ExternalTeacher.model_validate(section), f"{name}: teachers.{teacher}").read()
        # Sorted once, so that each window is a binary search.
        order = np.argsort(rows.example_id, kind="stable")
        self._sorted_id, self._probability = rows.example_id[order], rows.probabilities[task][order]

    def read(self, window: Window, example_id: Ints) -> ServedRows:
        """Looks up the rows of the ids."""
        if not self._sorted_id.size:
            return ServedRows(example_id[:0], np.zeros(0))
        # An id above all others would be past the end; clipped, it fails the comparison below.
        index = np.minimum(np.searchsorted(self._sorted_id, example_id), self._sorted_id.size - 1)
        is_hit = self._sorted_id[index] == example_id
        return ServedRows(example_id[is_hit], self._probability[index[is_hit]])
