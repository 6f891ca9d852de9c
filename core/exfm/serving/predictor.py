"""Loads an export and predicts rows with it, which needs torch and pyarrow, but neither torchrec nor FBGEMM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from pydantic import ValidationError
from torch import Tensor

from exfm.data.column_types import is_list, replace_values
from exfm.data.validation import check_features
from exfm.errors import ConfigError, RunError, suggestion
from exfm.mappings import map_values
from exfm.serving.archives import check_archive
from exfm.serving.description import (
    COMPILED_FILE,
    DESCRIPTION_FILE,
    PROGRAM_FILE,
    Description,
    arrays,
    arrow_type,
    embedding_input,
)
from exfm.serving.embedding_rows import embedding_rows
from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace

Program = Callable[..., tuple[Tensor, ...]]

_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


class Predictor:
    """Predicts with an exported model. It may be called from several threads.

    Attributes:
        description: describes the features, columns and tensors of the model, and its snapshot.
    """

    def __init__(self, description: Description, program: Program) -> None:
        self.description = description
        self._program = program
        self._types = map_values(arrow_type, description.columns)

    def predict(self, rows: pa.RecordBatch | Sequence[Mapping[str, Any]]) -> dict[str, npt.NDArray[np.float32]]:
        """Predicts each task for each row, (B,) float32 by task: a probability, or an expected value.

        Of a multiclass label it predicts a probability per class, (B, C). ``description.outputs`` says which it is.

        Rows are hashed, transformed and truncated as the stream's rows are in training.

        Args:
            rows: a record batch with the columns of ``description.columns`` in any order, which may have others; or a
                mapping per row, with a key per column. The embedding of a teacher that has none of a row is null.

        Raises:
            ConfigError: a column is missing or of another type, or a value is outside the feature's range.
        """
        return self.run(self.tensors(rows))

    def tensors(self, rows: pa.RecordBatch | Sequence[Mapping[str, Any]]) -> tuple[Tensor, ...]:
        """Converts rows to the program's arguments.

        Raises:
            ConfigError: as for ``predict``.
        """
        read_column = _from_arrow if isinstance(rows, pa.RecordBatch) else _from_mappings
        columns = {column: read_column(rows, column, kind) for column, kind in self._types.items()}
        batch = pa.RecordBatch.from_pydict(columns)
        features, event_time = self.description.features, self.description.event_time
        if event_time and batch.column(event_time).null_count:
            row = batch.column(event_time).is_null().to_pylist().index(True)
            raise ConfigError(f"row {row}: {event_time}: the value is missing")
        check_features(batch, features, event_time)
        converted = [*arrays(features, batch, event_time)]
        for teacher, width in self.description.embeddings.items():
            column = embedding_input(teacher)
            converted.append(embedding_rows(batch.column(column), column, width))
        # Arrays that share Arrow's memory are read-only, and torch has no read-only tensors: copy these.
        return tuple(torch.from_numpy(np.require(array, requirements="W")) for array in converted)

    def run(self, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[np.float32]]:
        """Runs the program, and returns the prediction of each task, (B,) or (B, C) by task."""
        tasks, specs = self.description.tasks, self.description.outputs
        # The last argument has B rows. The graph is captured for at least 1 example.
        if tensors[-1].shape[0] == 0:
            shapes = {spec.name: tuple(0 if dim == "B" else int(dim) for dim in spec.shape) for spec in specs}
            return {task: np.zeros(shapes[task], np.float32) for task in tasks}
        with torch.no_grad():
            outputs = self._program(*tensors)
        return {task: output.numpy() for task, output in zip(tasks, outputs, strict=True)}


def load(url: str, *, compiled: bool | None = None) -> Predictor:
    """Loads an export that ``exfm export`` wrote.

    The files hold code, and are checked only against the checksums in inputs.json: load exports that you trust. No
    file is unpickled: a program that holds a pickle is refused.

    Args:
        url: the folder, any fsspec URL.
        compiled: whether to run the compiled program; by default where the export has one.

    Raises:
        ConfigError: there is no export, or it has no compiled program.
        RunError: a file is corrupt, has entries that exfm does not write, or was compiled for another torch version.
    """
    workspace = Workspace(url)
    description = read_description(workspace)
    if compiled is None:
        compiled = COMPILED_FILE in description.files
    name = COMPILED_FILE if compiled else PROGRAM_FILE
    return Predictor(description, _program(workspace, description, name))


def read_description(workspace: Workspace) -> Description:
    """Reads the description of the export in a folder.

    Raises:
        ConfigError: the folder holds no export.
        RunError: the description is damaged.
    """
    if not workspace.exists(DESCRIPTION_FILE):
        raise ConfigError(f"{workspace.url}: no {DESCRIPTION_FILE} here; `exfm export` writes it")
    try:
        return Description.model_validate_json(workspace.read(DESCRIPTION_FILE))
    except ValidationError as error:
        raise RunError(f"{workspace.url}/{DESCRIPTION_FILE}: not the description of an export: {error}") from error


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
    # Compiled code calls torch's C++ functions, whose binary interface changes between versions.
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
    values = rows.column(column)
    try:
        return _without_extensions(values).cast(kind)
    except _ARROW_ERRORS as error:
        raise ConfigError(f"{column}: the column must be {kind}, not {values.type}: {error}") from error


def _from_mappings(rows: Sequence[Mapping[str, Any]], column: str, kind: pa.DataType) -> pa.Array:
    for number, row in enumerate(rows):
        if column not in row:
            raise ConfigError(f"row {number}: {column}: the column is missing.{suggestion(column, row)}")
        # Arrow would accept a string as a list of its characters.
        if pa.types.is_list(kind) and isinstance(row[column], str | bytes | Mapping):
            raise ConfigError(f"row {number}: {column}: the value must be {kind}; given: {row[column]!r}")
    values = [_stored(row[column]) for row in rows]
    try:
        if _holds_times(kind):  # datetimes, or strings such as 2026-01-31T12:00:00Z
            return pa.array(values).cast(_in_utc(kind)).cast(kind)
        return pa.array(values, kind)
    except _ARROW_ERRORS as error:
        raise ConfigError(f"{column}: the values must be {kind}: {error}") from error


def _without_extensions(values: pa.Array) -> pa.Array:
    """Returns UUIDs as bytes, in lists too, because Arrow casts no lists of them."""
    if isinstance(values, pa.ExtensionArray):
        return values.storage
    if is_list(values.type) and isinstance(values.type.value_type, pa.BaseExtensionType):
        return replace_values(values, values.flatten().storage)
    return values


def _stored(value: Any) -> Any:
    """Returns UUIDs as bytes, in lists too."""
    if isinstance(value, list | tuple):
        return [_stored(element) for element in value]
    return value.bytes if isinstance(value, UUID) else value


def _holds_times(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind.value_type if pa.types.is_list(kind) else kind))


def _in_utc(kind: pa.DataType) -> pa.DataType:
    return pa.list_(_in_utc(kind.value_type)) if pa.types.is_list(kind) else pa.timestamp(kind.unit, "UTC")
