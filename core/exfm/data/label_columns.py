"""Names the columns of predictions and labels in Parquet files, and the kind of label that a column holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from exfm.interfaces.schema import Label, LabelKind

_KIND = b"exfm.label_kind"
PREDICTION = "prediction_"


def prediction_columns(label: Label) -> list[str]:
    """Names the columns of a label's predictions: a single column, or a column per class."""
    name = f"{PREDICTION}{label.name}"
    return [name] if label.kind != "multiclass" else [f"{name}/{number}" for number in range(label.width)]


def columns_by_task(columns: Iterable[str]) -> dict[str, list[str]]:
    """Groups the columns of predictions by task, in the order of the file, which is that of the classes."""
    by_task: dict[str, list[str]] = {}
    for name in columns:
        if name.startswith(PREDICTION):
            # No task's name has a slash.
            by_task.setdefault(name.removeprefix(PREDICTION).partition("/")[0], []).append(name)
    return by_task


def prediction_fields(labels: Mapping[str, Label]) -> dict[str, pa.DataType]:
    """Returns the columns of the predictions of tasks with their types."""
    return {name: pa.float32() for label in labels.values() for name in prediction_columns(label)}


def label_fields(labels: Mapping[str, Label]) -> list[pa.Field]:
    """Returns the columns of the labels of tasks; the metadata of a label that is not binary name its kind."""
    fields: list[pa.Field] = []
    for task, label in labels.items():
        metadata = None if label.kind == "binary" else {_KIND: label.kind.encode()}
        fields.append(pa.field(f"label_{task}", pa.float32(), metadata=metadata))
    return fields


def label_kind(field: pa.Field) -> LabelKind:
    """Returns the kind of label that a column of ``label_fields`` holds."""
    kind: LabelKind = (field.metadata or {}).get(_KIND, b"binary").decode()
    return kind


def held_by(label: Label) -> str:
    """Names the content of a label's predictions, for the metadata of a file."""
    kinds: dict[LabelKind, str] = {"binary": "probability", "regression": "value", "multiclass": "probabilities"}
    return kinds[label.kind]


def labels_of(tasks: Sequence[str], labels: Mapping[str, Label] | None = None) -> dict[str, Label]:
    """Returns the label of each task; a task without an entry is binary."""
    by_task = labels or {}
    return {task: by_task.get(task, Label(name=task)) for task in tasks}
