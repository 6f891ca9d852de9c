"""Lists, checks and reads Parquet files that another system wrote as a teacher's supervision.

Legend: S rows of all files together.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from exfm.config.experiment import ExternalTeacher
from exfm.errors import ConfigError, suggestion
from exfm.sources import list_files
from exfm.sources.ids import example_id_ok, example_ids
from exfm.sources.row_groups.footers import FOOTERS_AT_ONCE

logger = logging.getLogger(__name__)
I64 = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ExternalRows:
    """Contents of the files: example ids (S,), and probabilities (S,) by task, NaN where missing."""

    example_id: I64
    probabilities: dict[str, F32]


class ExternalFiles:
    """The files of a teacher from elsewhere; the constructor checks their metadata.

    Args:
        config: the teacher's section of the experiment.
        section: the location of the section, for messages: ``FILE: teachers.NAME``.

    Raises:
        ConfigError: there is no file, a file cannot be read, or a column is missing or of a wrong type.
    """

    def __init__(self, config: ExternalTeacher, section: str) -> None:
        self._config = config
        self._section = section
        try:
            self._fs, root = fsspec.core.url_to_fs(config.path)
            self._paths = list(list_files(self._fs, root, ".parquet"))
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(f"{section}.path: {config.path!r} cannot be listed: {error}") from error
        if not self._paths:
            raise ConfigError(f"{section}.path: there is no Parquet file at {config.path!r}")
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            self.rows = sum(pool.map(self._check, self._paths))

    def read(self) -> ExternalRows:
        """Reads all rows, in the order of the files.

        Raises:
            ConfigError: an example id is missing or repeated, or a value contradicts its kind; the message names
                file and row.
        """
        ids = np.empty(self.rows, np.int64)
        # Allocated once and filled, because joining the batches would hold all rows twice.
        probabilities = {task: np.empty(self.rows, np.float32) for task in self._config.predictions}
        self._nan = dict.fromkeys(probabilities, 0)
        start = 0
        for path, first, batch in self._batches():
            stop = start + batch.num_rows
            ids[start:stop] = self._ids(path, first, batch)
            for task, values in probabilities.items():
                values[start:stop] = self._probabilities(path, first, batch, task)
            start = stop
        for task, count in self._nan.items():
            if count:
                logger.warning("%s: %d of %d predictions of %r are NaN: misses", self._section, count, self.rows, task)
        return ExternalRows(ids, probabilities)

    def repeated(self, row: int) -> ConfigError:
        """Makes the error for a row, counted over all files, whose example id came before."""
        for path in self._paths:
            with self._open(path) as file:
                rows = file.metadata.num_rows
            if row < rows:
                break
            row -= rows
        return ConfigError(f"{self._section}: {path}, row {row}: this example id came before; each may come once")

    def _batches(self) -> Iterator[tuple[str, int, pa.RecordBatch]]:
        """Yields batches of the columns that are read, with their path and first row."""
        columns = [self._config.example_id]
        for prediction in self._config.predictions.values():
            columns.append(prediction.column)
        for path in self._paths:
            first = 0
            with self._open(path) as file:
                # Each column once: two tasks may read the same column.
                for batch in file.iter_batches(columns=list(dict.fromkeys(columns))):
                    yield path, first, batch
                    first += batch.num_rows

    def _ids(self, path: str, first: int, batch: pa.RecordBatch) -> I64:
        column = batch.column(self._config.example_id)
        self._refuse(column.is_null(), path, first, self._config.example_id, "the example id is missing", column)
        values: I64 = example_ids(column).to_numpy(zero_copy_only=False)
        return values

    def _probabilities(self, path: str, first: int, batch: pa.RecordBatch, task: str) -> F32:
        """Reads the predictions of a task: expected values, or probabilities, from probabilities or logits."""
        prediction = self._config.predictions[task]
        column = batch.column(prediction.column)
        # In double precision, so that the checks see the value before it is rounded.
        values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
        # A null is a missing prediction on purpose, and a NaN is more likely a mistake.
        self._nan[task] += int(np.isnan(values).sum()) - column.null_count
        if prediction.kind == "logit":
            infinite = pa.array(np.isinf(values))
            self._refuse(
                infinite, path, first, prediction.column, "a logit is finite, and one without a value null", column
            )
            # exp of a very negative logit overflows to infinity, and the probability is then exactly 0.
            with np.errstate(over="ignore"):
                return np.asarray(1 / (1 + np.exp(-values)), np.float32)
        if prediction.kind == "value":
            reason = "an expected value is finite, and one that is missing null"
            with np.errstate(over="ignore"):
                rounded = np.asarray(values, np.float32)
            self._refuse(pa.array(np.isinf(rounded)), path, first, prediction.column, reason, column)
            return rounded
        wrong = (values < 0) | (values > 1)
        self._refuse(pa.array(wrong), path, first, prediction.column, "a probability lies between 0 and 1", column)
        return np.asarray(values, np.float32)

    def _refuse(self, wrong: pa.Array, path: str, first: int, name: str, reason: str, column: pa.Array) -> None:
        """Raises an error for the first wrong row of a batch, if there is any."""
        row = pc.index(wrong, True).as_py()
        if row >= 0:
            value = column[row].as_py()
            raise ConfigError(f"{self._section}: {path}, row {first + row}: {name}: {reason}; given: {value!r}")

    def _check(self, path: str) -> int:
        """Checks a file's columns and returns its number of rows."""
        try:
            with self._open(path) as file:
                schema, rows = file.schema_arrow, file.metadata.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise ConfigError(f"{self._section}.path: {path} cannot be read as Parquet: {error}") from error
        self._check_column(path, schema, "example_id", self._config.example_id)
        for task, prediction in self._config.predictions.items():
            self._check_column(path, schema, f"predictions.{task}.column", prediction.column)
        return int(rows)

    def _check_column(self, path: str, schema: pa.Schema, key: str, name: str) -> None:
        if name not in schema.names:
            raise ConfigError(f"{self._section}.{key}: {path} has no column {name!r}.{suggestion(name, schema.names)}")
        kind = schema.field(name).type
        if key == "example_id":
            type_ok, expected = example_id_ok(kind), "integers, strings, bytes or UUIDs"
        else:
            type_ok, expected = pa.types.is_floating(kind), "floating-point numbers"
        if not type_ok:
            raise ConfigError(f"{self._section}.{key}: {path}: column {name!r} must hold {expected}, not {kind}")

    def _open(self, path: str) -> pq.ParquetFile:
        return pq.ParquetFile(path, filesystem=self._fs)


def check_files(teachers: dict[str, ExternalTeacher], file: str) -> None:
    """Checks the files of every teacher from elsewhere.

    Raises:
        ConfigError: see ``ExternalFiles``.
    """
    for name, config in teachers.items():
        ExternalFiles(config, f"{file}: teachers.{name}")
