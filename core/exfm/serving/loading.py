"""Loads an export and predicts rows with it: with torch and pyarrow, and without torchrec and FBGEMM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import Tensor

from exfm.data.validation import check_features
from exfm.errors import ConfigError, RunError, suggestion
from exfm.serving.archives import check_archive
from exfm.serving.layout import COMPILED_FILE, DESCRIPTION_FILE, PROGRAM_FILE, Description, arrays, arrow_type
from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace

Program = Callable[..., tuple[Tensor, ...]]

_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


class Predictor:
    """An exported model. It may be called from several threads.

    Attributes:
        description: features, columns and tensors of the model, and the snapshot it is.
    """

    def __init__(self, description: Description, program: Program) -> None:
        self.description = description
        self._program = program
        self._types = {column: arrow_type(name) for column, name in description.columns.items()}

    def predict(self, rows: pa.RecordBatch | Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """The probability of each task for each row, (B,) float32 by task.

        Rows are hashed, transformed and cut as the stream's rows are in training.

        Args:
            rows: a record batch with the columns of ``description.columns`` in any order, others being ignored; or a
                mapping per row, with a key per column.

        Raises:
            ConfigError: a column is missing or of another type, or a value is none that the feature can have.
        """
        return self.run(self.tensors(rows))

    def tensors(self, rows: pa.RecordBatch | Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
        """The program's arguments for some rows.

        Raises:
            ConfigError: as for ``predict``.
        """
        named = _from_arrow if isinstance(rows, pa.RecordBatch) else _from_mappings
        columns = {column: named(rows, column, kind) for column, kind in self._types.items()}
        batch = pa.RecordBatch.from_pydict(columns)
        features, event_time = self.description.features, self.description.event_time
        if event_time and batch.column(event_time).null_count:
            row = batch.column(event_time).is_null().to_pylist().index(True)
            raise ConfigError(f"row {row}: {event_time}: the value is missing")
        check_features(batch, features, event_time)
        # What still lies in Arrow's memory is read-only, and torch has no such tensors.
        writable = (np.require(array, requirements="W") for array in arrays(features, batch, event_time))
        return tuple(torch.from_numpy(array) for array in writable)

    def run(self, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[np.float32]]:
        """The probability of each task, (B,) by task, from the program's arguments."""
        tasks = self.description.tasks
        if tensors[-1].shape[0] == 0:  # B: a graph is captured for one example and more
            return {task: np.zeros(0, np.float32) for task in tasks}
        with torch.no_grad():
            outputs = self._program(*tensors)
        return {task: output.numpy() for task, output in zip(tasks, outputs, strict=True)}


def load(url: str, *, compiled: bool | None = None) -> Predictor:
    """Loads what ``exfm export`` wrote.

    The files hold code and are checked against the checksums in inputs.json alone: load exports that you trust. Nothing
    is unpickled: a program that holds a pickle is refused.

    Args:
        url: the folder, any fsspec URL.
        compiled: whether to run the compiled program; by default where the export has one.

    Raises:
        ConfigError: there is no export, or it has no compiled program.
        RunError: a file is corrupt, holds what exfm does not write, or was compiled for another version of torch.
    """
    workspace = Workspace(url)
    if not workspace.exists(DESCRIPTION_FILE):
        raise ConfigError(f"{url}: no {DESCRIPTION_FILE} here; `exfm export` writes it")
    try:
        description = Description.model_validate_json(workspace.read(DESCRIPTION_FILE))
    except ValidationError as error:
        raise RunError(f"{url}/{DESCRIPTION_FILE}: not the description of an export: {error}") from error
    if compiled is None:
        compiled = COMPILED_FILE in description.files
    return Predictor(description, _program(workspace, description, COMPILED_FILE if compiled else PROGRAM_FILE))


def _program(workspace: Workspace, description: Description, name: str) -> Program:
    if name not in description.files:
        raise ConfigError(f"{workspace.url}: the export has no {name}; it has {', '.join(description.files)}")
    file = description.files[name]
    data = BytesIO(workspace.read_checked(FileRecord(name, file.bytes, file.xxh3)))
    if name == PROGRAM_FILE:
        try:
            check_archive(data)
        except ValueError as error:
            raise RunError(f"{workspace.url}/{name}: not a program that `exfm export` has written: {error}") from error
        program: Program = torch.export.load(data).module()
        return program
    exported = description.versions["torch"]
    if exported != torch.__version__:
        raise RunError(
            f"{workspace.url}/{name}: compiled for torch {exported}, and this is {torch.__version__}; "
            "export again with this one, or load with compiled=False"
        )
    compiled: Program = torch._inductor.aoti_load_package(data)
    return compiled


def _from_arrow(rows: pa.RecordBatch, column: str, kind: pa.DataType) -> pa.Array:
    if column not in rows.schema.names:
        raise ConfigError(f"{column}: the column is missing.{suggestion(column, rows.schema.names)}")
    given = rows.column(column)
    try:
        return given.cast(kind)
    except _ARROW_ERRORS as error:
        raise ConfigError(f"{column}: the column must be {kind}, not {given.type}: {error}") from error


def _from_mappings(rows: Sequence[Mapping[str, Any]], column: str, kind: pa.DataType) -> pa.Array:
    for number, row in enumerate(rows):
        if column not in row:
            raise ConfigError(f"row {number}: {column}: the column is missing.{suggestion(column, row)}")
        if pa.types.is_list(kind) and isinstance(row[column], str | bytes | Mapping):  # Arrow would take its parts
            raise ConfigError(f"row {number}: {column}: the value must be {kind}; given: {row[column]!r}")
    values = [row[column] for row in rows]
    try:
        if _holds_times(kind):  # datetimes, or strings such as 2026-01-31T12:00:00Z
            return pa.array(values).cast(_in_utc(kind)).cast(kind)
        return pa.array(values, kind)
    except _ARROW_ERRORS as error:
        raise ConfigError(f"{column}: the values must be {kind}: {error}") from error


def _holds_times(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind.value_type if pa.types.is_list(kind) else kind))


def _in_utc(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_in_utc(kind.value_type)) if pa.types.is_list(kind) else pa.timestamp(kind.unit, "UTC")
