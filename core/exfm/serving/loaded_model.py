"""Predicts rows with a loaded snapshot of an exported model.

Legend: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from exfm.data.column_types import is_list, replace_values
from exfm.data.validation import check_features
from exfm.errors import ConfigError, suggestion
from exfm.mappings import map_values
from exfm.serving.description import Description, arrays, arrow_type, embedding_input
from exfm.serving.embedding_rows import embedding_rows
from exfm.serving.programs import Program

Rows: TypeAlias = pa.RecordBatch | Sequence[Mapping[str, Any]]
"""Rows of a request: a record batch, or a mapping per row."""

_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


@dataclass(frozen=True)
class LoadedModel:
    """Holds a snapshot of an exported model, ready to run."""

    description: Description
    program: Program

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """The type of each column of a row."""
        return map_values(arrow_type, self.description.columns)

    def columns(self, rows: Rows) -> pa.RecordBatch:
        """Reads the columns of rows that the model needs, in the types that they have in training.

        Raises:
            ConfigError: a column is missing or of another type.
        """
        read_column = _from_arrow if isinstance(rows, pa.RecordBatch) else _from_mappings
        columns = {column: read_column(rows, column, kind) for column, kind in self.types.items()}
        return pa.RecordBatch.from_pydict(columns)

    def tensors(self, rows: Rows) -> tuple[Tensor, ...]:
        """Converts rows to the program's arguments.

        Raises:
            ConfigError: a column is missing or of another type, or a value is outside the feature's range.
        """
        return self.convert(self.columns(rows))

    def convert(self, batch: pa.RecordBatch) -> tuple[Tensor, ...]:
        """Converts columns, as ``columns`` returns them, to the program's arguments.

        Raises:
            ConfigError: a value is outside the feature's range.
        """
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
            outputs = self.program(*tensors)
        return {task: output.numpy() for task, output in zip(tasks, outputs, strict=True)}


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
