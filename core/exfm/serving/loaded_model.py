"""Predicts rows with a loaded snapshot of an exported model.

Legend: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
from exfm.serving.mapping_decoder import MappingDecoder
from exfm.serving.programs import Program
from exfm.serving.request import RequestArrays

Rows: TypeAlias = pa.RecordBatch | Sequence[Mapping[str, Any]]
"""Rows of a request: a record batch, or a mapping per row."""

Context: TypeAlias = pa.RecordBatch | Mapping[str, Any]
"""Columns that all candidates of a request have in common: a record batch of a row, or a mapping."""

_NO_LISTS = (str, bytes, Mapping, UUID)
"""Types that Arrow would accept as lists of their elements, and UUIDs, which it has no values of."""

_FEW_ROWS = 100
"""Rows up to which Arrow's conversion of mappings takes longer than that of ``MappingDecoder``."""

_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError)


@dataclass(frozen=True)
class LoadedModel:
    """Holds a snapshot of an exported model, ready to run.

    Attributes:
        description: the content of inputs.json.
        program: the program, with the snapshot's weights.
        request: the program of a request; None where the export has none.
    """

    description: Description
    program: Program
    request: Program | None = None

    @cached_property
    def types(self) -> dict[str, pa.DataType]:
        """The type of each column of a row."""
        return map_values(arrow_type, self.description.columns)

    def columns(self, rows: Rows) -> pa.RecordBatch:
        """Reads the columns of rows that the model needs, in the types that they have in training.

        Raises:
            ConfigError: a column is missing or of another type.
        """
        return self._read(rows, self.types)

    def request_columns(self, context: Context, candidates: Rows) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Reads the columns of a context, of a row, and the other columns of its candidates.

        Raises:
            ConfigError: as for ``columns``; also where the context has several rows, or the candidates have a column of
                it that the model reads.
        """
        if isinstance(context, pa.RecordBatch):
            if context.num_rows != 1:
                raise ConfigError(f"context: it has a single row; given: {context.num_rows}")
            names, rows = set(context.schema.names), context
        else:
            names, rows = set(context), [context]
        shared = {column: kind for column, kind in self.types.items() if column in names}
        self._check_apart(shared, candidates)
        try:
            read_context = self._read(rows, shared)
        except ConfigError as error:
            raise ConfigError(f"context: {error}") from error
        others = {column: kind for column, kind in self.types.items() if column not in shared}
        read = self._read(candidates, others)
        if not others:
            # Candidates without a column of the model are still so many rows.
            size = candidates.num_rows if isinstance(candidates, pa.RecordBatch) else len(candidates)
            read = pa.RecordBatch.from_struct_array(pa.array([{}] * size, pa.struct([])))
        return read_context, read

    def _check_apart(self, shared: Mapping[str, pa.DataType], candidates: Rows) -> None:
        if isinstance(candidates, pa.RecordBatch):
            twice = [name for name in candidates.schema.names if name in shared]
            where = "the candidates"
        else:
            keys, twice, where = shared.keys(), [], ""
            for number, candidate in enumerate(candidates):
                if not keys.isdisjoint(candidate):
                    twice, where = [name for name in keys if name in candidate], f"row {number} of the candidates"
                    break
        if twice:
            raise ConfigError(f"{twice[0]}: the column is in the context, and in {where}: leave it out of either")

    def _read(self, rows: Rows, types: Mapping[str, pa.DataType]) -> pa.RecordBatch:
        read_column = _from_arrow if isinstance(rows, pa.RecordBatch) else _from_mappings
        columns = {column: read_column(rows, column, kind) for column, kind in types.items()}
        return pa.RecordBatch.from_pydict(columns)

    def tensors(self, rows: Rows) -> tuple[Tensor, ...]:
        """Converts rows to the program's arguments.

        Raises:
            ConfigError: a column is missing or of another type, or a value is outside the feature's range.
        """
        if not isinstance(rows, pa.RecordBatch) and 0 < len(rows) <= _FEW_ROWS and self._decoder is not None:
            decoded = self._decoder.decode(rows)
            if decoded is not None:
                return tuple(map(torch.from_numpy, decoded))  # which all own their memory
        return self.convert(self.columns(rows))

    @cached_property
    def _decoder(self) -> MappingDecoder | None:
        """Converts mappings, where the features have a simple form."""
        return MappingDecoder(self.description) if MappingDecoder.can_decode(self.description) else None

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
        return _tensors(converted)

    def predict_request(self, context: Context, candidates: Rows) -> dict[str, npt.NDArray[np.float32]]:
        """Predicts each task for each candidate of a context, (B,) or (B, C) by task; see ``Predictor``."""
        return self.run_request(*self.request_columns(context, candidates))

    def run_request(self, context: pa.RecordBatch, candidates: pa.RecordBatch) -> dict[str, npt.NDArray[np.float32]]:
        """Predicts candidates, whose columns ``request_columns`` has returned.

        Raises:
            ConfigError: a value is outside the feature's range.
        """
        tensors = _tensors(RequestArrays(self.description, context, candidates).arguments())
        return self._run(self.program if self.request is None else self.request, tensors)

    def run(self, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[np.float32]]:
        """Runs the program, and returns the prediction of each task, (B,) or (B, C) by task."""
        return self._run(self.program, tensors)

    def _run(self, program: Program, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[np.float32]]:
        tasks, specs = self.description.tasks, self.description.outputs
        # The last argument has B rows. The graph is captured for at least 1 example.
        if tensors[-1].shape[0] == 0:
            shapes = {spec.name: tuple(0 if dim == "B" else int(dim) for dim in spec.shape) for spec in specs}
            return {task: np.zeros(shapes[task], np.float32) for task in tasks}
        with torch.no_grad():
            outputs = program(*tensors)
        return {task: output.numpy() for task, output in zip(tasks, outputs, strict=True)}


def _tensors(arrays: Iterable[npt.NDArray[Any]]) -> tuple[Tensor, ...]:
    # Arrays that share Arrow's memory are read-only, and torch has no read-only tensors: copy these.
    return tuple(torch.from_numpy(np.require(array, requirements="W")) for array in arrays)


def _from_arrow(rows: pa.RecordBatch, column: str, kind: pa.DataType) -> pa.Array:
    if column not in rows.schema.names:
        raise ConfigError(f"{column}: the column is missing.{suggestion(column, rows.schema.names)}")
    values = rows.column(column)
    try:
        return _without_extensions(values).cast(kind)
    except _ARROW_ERRORS as error:
        raise ConfigError(f"{column}: the column must be {kind}, not {values.type}: {error}") from error


def _from_mappings(rows: Sequence[Mapping[str, Any]], column: str, kind: pa.DataType) -> pa.Array:
    try:
        values = [row[column] for row in rows]
        # Bytes may be UUIDs, and times texts: such values are converted before Arrow takes them.
        types = set(map(type, values))
        if not pa.types.is_list(kind):
            types.discard(str)
        if _is_plain(kind) and not any(issubclass(type_, _NO_LISTS) for type_ in types):
            return pa.array(values, kind)
    except (KeyError, *_ARROW_ERRORS):
        pass  # the values are looked at again, for the message
    return _from_other_mappings(rows, column, kind)


def _is_plain(kind: pa.DataType) -> bool:
    value_type = kind.value_type if pa.types.is_list(kind) else kind
    return value_type in (pa.int64(), pa.uint64(), pa.bool_(), pa.float64(), pa.string())


def _from_other_mappings(rows: Sequence[Mapping[str, Any]], column: str, kind: pa.DataType) -> pa.Array:
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
