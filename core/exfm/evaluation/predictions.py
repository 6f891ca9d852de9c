"""Reads predictions for evaluation: each was computed before any model trained on its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.data.label_columns import columns_by_task, label_kind
from exfm.evaluation.label_kinds import MOMENTS, Labels, losses
from exfm.evaluation.metrics import Floats, Ints, Moments
from exfm.interfaces.data_source import Window
from exfm.interfaces.schema import LabelKind
from exfm.mappings import take_rows


class PredictionReader(Protocol):
    """Reads the predictions of a run window by window, because they may exceed memory."""

    def windows(self, model: str) -> Sequence[Window]:
        """Lists the committed windows of a model whose predictions are stored, in order."""
        ...

    def let_go(self, model: str) -> Sequence[Window]:
        """Lists the committed windows before them, whose predictions were removed, in order."""
        ...

    def examples(self, model: str, window: Window) -> int:
        """Counts the rows of a model's predictions of a window."""
        ...

    def predictions(self, model: str, window: Window) -> pa.Table:
        """Reads a model's predictions of a window, in the order of the stream.

        Columns: ``example_id`` and ``group`` (int64), and for each task T ``prediction_T``, ``label_T`` (NaN where the
        label is missing), where examples have weights ``weight_T``, and, on a simulated stream, ``oracle_T`` (the true
        probability or expected value). For each teacher E from elsewhere ``teacher_E/T``, its prediction, NaN where it
        has none. A label that is not binary names its kind in the metadata of its column; a multiclass label has a
        column ``prediction_T/c`` per class c.
        """
        ...


@dataclass(frozen=True)
class TaskRows:
    """Holds the labelled rows of a table for a task, as columns (E,).

    Attributes:
        probability: predictions: probabilities, or expected values; of a multiclass label (E, C).
        label: bool of a binary label, float64 of a number, int64 of a class.
        external: predictions by teacher from elsewhere, NaN where it has none.
        unlabelled: number of rows of the table without a label, which are left out.
        weight: the weight of each example; None where each weighs 1.
    """

    example_id: Ints
    group: Ints
    probability: Floats
    label: Labels
    oracle: Floats | None
    external: Mapping[str, Floats] = field(default_factory=dict)
    unlabelled: int = 0
    weight: Floats | None = None
    kind: LabelKind = "binary"

    @property
    def classes(self) -> int:
        """How many numbers a prediction holds."""
        return self.probability.shape[1] if self.probability.ndim > 1 else 1

    def moments(self, predicted: Floats) -> Moments:
        """Sums the losses of predictions of these rows."""
        return MOMENTS[self.kind].from_predictions(predicted, self.label, self.weight)

    def losses(self) -> npt.NDArray[np.float64]:
        """Computes the loss of each row, (E,)."""
        return losses(self.kind, self.probability, self.label)

    def take(self, index: npt.NDArray[np.intp]) -> TaskRows:
        """Selects rows by position."""
        oracle = None if self.oracle is None else self.oracle[index]
        external = take_rows(self.external, index)
        return TaskRows(
            self.example_id[index],
            self.group[index],
            self.probability[index],
            self.label[index],
            oracle,
            external,
            weight=None if self.weight is None else self.weight[index],
            kind=self.kind,
        )

    def as_predicted_by(self, teacher: str) -> TaskRows:
        """Selects the rows that a teacher from elsewhere predicted, with its prediction in place of the model's."""
        rows = self.take(np.flatnonzero(~np.isnan(self.external[teacher])))
        return replace(rows, probability=rows.external[teacher])


def window_indices(reader: PredictionReader, model: str) -> set[int]:
    """Returns the indices of the windows that a model predicted."""
    return {window.index for window in reader.windows(model)}


def common_windows(reader: PredictionReader, model: str, other: str, first_us: int) -> Iterator[Window]:
    """Yields the windows that both models predicted and that begin at ``first_us`` or later."""
    predicted_by_other = window_indices(reader, other)
    for window in reader.windows(model):
        if window.start_us >= first_us and window.index in predicted_by_other:
            yield window


def task_rows(
    reader: PredictionReader, model: str, window: Window, tasks: Sequence[str] | None = None
) -> dict[str, TaskRows]:
    """Reads a window of a model's predictions, by task; by default of all tasks that the model predicts.

    Raises:
        ValueError: a prediction is not a probability, or not finite: the model diverged.
    """
    table = reader.predictions(model, window)
    if tasks is None:
        tasks = list(columns_by_task(table.column_names))
    return {task: _labelled_rows(table, task, f"model {model!r}, task {task!r}, window {window}") for task in tasks}


def _labelled_rows(table: pa.Table, task: str, where: str) -> TaskRows:
    """Selects the rows whose label of a task is not missing.

    Args:
        where: begins the message of an error.
    """
    label = _column(table, f"label_{task}")
    kind = label_kind(table.schema.field(f"label_{task}"))
    is_labelled = ~np.isnan(label)
    probability = _predictions(table, task)[is_labelled]
    # Negated, because NaN compares false with everything: so it fails too.
    wrong = ~np.isfinite(probability) if kind == "regression" else ~((probability >= 0) & (probability <= 1))
    if wrong.any():
        rows = int(np.count_nonzero(wrong.any(axis=1) if wrong.ndim > 1 else wrong))
        raise ValueError(
            f"{where}: {rows} of {len(wrong)} predictions are not "
            f"{'finite' if kind == 'regression' else 'probabilities'} "
            f"(the first is {probability[wrong][0]}). the model diverged; a lower learning rate usually helps."
        )
    oracle = f"oracle_{task}"
    start, end = "teacher_", f"/{task}"
    external: dict[str, Floats] = {}
    for name in table.column_names:
        # ``/`` separates teacher and task because no teacher's name has it: ``_`` would be ambiguous.
        if name.startswith(start) and name.endswith(end):
            external[name.removeprefix(start).removesuffix(end)] = _column(table, name)[is_labelled]
    return TaskRows(
        example_id=_column(table, "example_id")[is_labelled],
        group=_column(table, "group")[is_labelled],
        probability=probability,
        # Labels are stored as floats, because they have NaN; with NaN gone they become what they are.
        label=_typed(label[is_labelled], kind),
        oracle=_column(table, oracle)[is_labelled] if oracle in table.column_names else None,
        external=external,
        unlabelled=int(np.count_nonzero(~is_labelled)),
        weight=_column(table, f"weight_{task}")[is_labelled] if f"weight_{task}" in table.column_names else None,
        kind=kind,
    )


def _predictions(table: pa.Table, task: str) -> Floats:
    """Returns the predictions of a task, (E,), or (E, C) with a column per class."""
    names = columns_by_task(table.column_names)[task]
    if names == [f"prediction_{task}"]:
        return _column(table, names[0])
    return np.stack([_column(table, name) for name in names], axis=1)


def _typed(label_E: Floats, kind: LabelKind) -> Labels:
    if kind == "binary":
        return label_E > 0.5
    return label_E.astype(np.float64 if kind == "regression" else np.int64)


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table.column(name).to_numpy()
    return values
