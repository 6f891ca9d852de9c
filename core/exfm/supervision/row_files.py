"""Writes and reads Parquet files of predictions and of supervision, per model and window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from exfm.data.label_columns import PREDICTION, held_by, label_fields, labels_of, prediction_fields
from exfm.interfaces.data_source import Shard
from exfm.interfaces.schema import Label
from exfm.storage.hashing import FileRecord
from exfm.storage.row_shards import shard_suffix
from exfm.storage.workspace import Workspace

if TYPE_CHECKING:
    from torch import Tensor

    from exfm.supervision.embeddings import EmbeddingShape
    from exfm.supervision.joiner import SupervisionRows

GROUP_ROWS = 1 << 20
"""Rows of a row group at most, the usual size: a reader holds a group of a column in memory."""

POSITION = "position"
"""Column of the files of several processes: the position of a row in the window, by which their rows are sorted."""

Folder = Literal["predictions", "supervision"]
Column = npt.NDArray[np.generic]
WHOLE = Shard()


def row_file(folder: Folder, model: str, window: int, shard: Shard = WHOLE) -> str:
    """Returns the path of a process's rows of a window of a model."""
    return f"{folder}/{model}/window-{window:06d}{shard_suffix(shard)}-{{digest}}.parquet"


def backfill_file(model: str, window: int) -> str:
    """Returns the path of rows of a window that a teacher has labelled later."""
    return f"supervision/{model}/backfill-{window:06d}-{{digest}}.parquet"


def teacher_column(teacher: str, task: str) -> str:
    """Returns the column with an external teacher's probability; names of teachers and tasks have no slash."""
    return f"teacher_{teacher}/{task}"


def _numbers(role: str, tasks: Sequence[str]) -> dict[str, pa.DataType]:
    """Maps the column of each task in a role to its type."""
    return {f"{role}_{task}": pa.float32() for task in tasks}


def predictions_schema(
    tasks: Sequence[str],
    oracles: Sequence[str],
    teachers: Iterable[str] = (),
    weighted: Iterable[str] = (),
    labels: Mapping[str, Label] | None = None,
) -> pa.Schema:
    """Returns the columns of a predictions file: predictions from before training on the row, labels, and the truth.

    Args:
        teachers: columns of external teachers, which have no predictions file; null without a prediction.
        weighted: tasks whose examples have weights.
        labels: the labels of tasks; a task without an entry is binary.
    """
    of_task = labels_of(tasks, labels)
    fields = {"example_id": pa.int64(), "window": pa.int32(), "group": pa.int64(), **prediction_fields(of_task)}
    after = _numbers("oracle", oracles) | dict.fromkeys(teachers, pa.float32())
    after |= {f"weight_{task}": pa.float32() for task in weighted}
    return pa.schema([*pa.schema(fields), *label_fields(of_task), *pa.schema(after)])


def supervision_schema(
    tasks: Sequence[str],
    teacher: str | None = None,
    embedding: EmbeddingShape | None = None,
    vectors: Mapping[str, EmbeddingShape] | None = None,
    labels: Mapping[str, Label] | None = None,
) -> pa.Schema:
    """Returns the columns of a supervision file; its metadata name the teacher and the kind of each task's value.

    A prediction is null if the teacher had not seen a label of the task yet. The snapshot is the version, or -1 before
    the first.
    """
    fields = {"example_id": pa.int64(), "window": pa.int32(), "event_time": pa.timestamp("us", "UTC")}
    of_task = labels_of(tasks, labels)
    fields |= prediction_fields(of_task)
    fields |= {"snapshot": pa.int32(), "watermark": pa.timestamp("us", "UTC")}
    stored = {**({} if embedding is None else {"embedding": embedding}), **(vectors or {})}
    for column, shape in stored.items():
        fields[column] = _vector(pa.float16() if shape.format == "float16" else pa.int8(), shape.dim)
        if shape.format == "int8":
            fields[scale_column(column)] = pa.float32()
    kinds = {f"exfm.kind.{task}": held_by(label) for task, label in of_task.items()}
    return pa.schema(fields, metadata=kinds if teacher is None else {"exfm.teacher": teacher, **kinds})


def with_position(schema: pa.Schema) -> pa.Schema:
    """Returns the columns of the file of one of several processes."""
    return schema.append(pa.field(POSITION, pa.int64()))


def _vector(number: pa.DataType, width: int) -> pa.DataType:
    # Nullable entries would cost space for definition levels, and time.
    return pa.list_(pa.field("item", number, nullable=False), width)


def _vectors(values_SK: Tensor) -> pa.Array:
    numbers = pa.array(values_SK.contiguous().view(-1).numpy())
    return pa.FixedSizeListArray.from_arrays(numbers, type=_vector(numbers.type, values_SK.shape[1]))


def as_columns(predictions: Mapping[str, Tensor]) -> dict[str, Column]:
    """Returns the columns of predictions, (S,) or (S, C) by task: a column each, or a column per class."""
    columns: dict[str, Column] = {}
    for task, values in predictions.items():
        name = f"{PREDICTION}{task}"
        if values.dim() == 1:
            columns[name] = values.numpy()
        else:
            columns |= {f"{name}/{number}": column.numpy() for number, column in enumerate(values.unbind(1))}
    return columns


def supervision_columns(rows: SupervisionRows, window: int, snapshot: int) -> dict[str, Column | pa.Array]:
    """Converts rows to the columns of a supervision file."""
    count = rows.example_id.numel()
    columns: dict[str, Column | pa.Array] = {
        "example_id": rows.example_id.numpy(),
        "window": np.full(count, window, np.int32),
        "event_time": rows.event_time_us.numpy(),
        **as_columns(rows.probabilities),
        "snapshot": np.full(count, snapshot, np.int32),
        "watermark": rows.watermark_us.numpy(),
    }
    stored = {**({} if rows.embedding is None else {"embedding": rows.embedding}), **rows.vectors}
    for column, vectors in stored.items():
        columns[column] = _vectors(vectors.values_SE)
        if vectors.scale_S is not None:
            columns[scale_column(column)] = vectors.scale_S.numpy()
    return columns


class RowWriter:
    """Writes a Parquet file, a row group per call, in constant memory.

    The file appears under its name at ``close``; ``discard`` removes the unfinished file.

    Args:
        sync: whether ``close`` waits until the data is on disk; False for a file that a commit waits for.
    """

    def __init__(self, workspace: Workspace, path: str, schema: pa.Schema, sync: bool = True) -> None:
        self._stack = ExitStack()
        self._file = self._stack.enter_context(workspace.writing(path, sync))
        self._writer = pq.ParquetWriter(self._file, schema, **parquet_options(schema))
        self._schema = schema

    def append(self, columns: Mapping[str, Column | pa.Array]) -> None:
        """Appends rows from a value per row for every column of the schema."""
        self.write(rows_table(columns, self._schema))

    def write(self, rows: pa.Table) -> None:
        """Appends rows that have the schema."""
        self._writer.write_table(rows, row_group_size=GROUP_ROWS)

    def close(self) -> FileRecord:
        """Completes the file."""
        self._writer.close()
        self._stack.close()
        return self._file.record()

    def discard(self) -> None:
        """Removes the unfinished file."""
        with suppress(Exception):  # closing writes the footer, which fails on a full disk
            self._writer.close()
        error = InterruptedError("discarded")
        with suppress(InterruptedError):
            self._stack.__exit__(type(error), error, None)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """Returns encodings: dictionaries only for columns of few values, because building them takes half the time."""
    few = [name for name in schema.names if name in ("window", "snapshot", "watermark") or name.startswith("label_")]
    vectors = [field for field in schema if pa.types.is_fixed_size_list(field.type)]
    few += [f"{field.name}.list.element" for field in vectors if field.type.value_type == pa.int8()]
    return {
        "compression": "zstd",
        "compression_level": 1,
        "use_dictionary": few,
        "column_encoding": {name: "DELTA_BINARY_PACKED" for name in schema.names if name in ("event_time", POSITION)},
    }


def rows_table(columns: Mapping[str, Column | pa.Array], schema: pa.Schema) -> pa.Table:
    """Converts columns to a table of the schema."""
    return pa.Table.from_arrays([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _array(column: Column | pa.Array, kind: pa.DataType) -> pa.Array:
    """Converts a column to the type; NaN becomes null."""
    return column if isinstance(column, pa.Array) else pa.array(column, from_pandas=True).cast(kind)


def scale_column(column: str) -> str:
    """Names the column of the scales of a column of int8 vectors."""
    return "embedding_scale" if column == "embedding" else f"scale_{column}"
