"""What evaluation reads: tables of predictions that were made before any model trained on their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.evaluation.metrics import Bools, Floats, Ints
from exfm.interfaces.data_source import Window


class PredictionReader(Protocol):
    """Access to the predictions of a run, window by window, so that none of it has to fit in memory."""

    def windows(self, model: str) -> Sequence[Window]:
        """The committed windows of a model, in order."""
        ...

    def examples(self, model: str, window: Window) -> int:
        """How many rows a model's predictions of one window have."""
        ...

    def predictions(self, model: str, window: Window) -> pa.Table:
        """A model's predictions for one window, in the order of the stream.

        Columns: ``example_id`` and ``group`` (int64), and for each task T ``prediction_T``, ``label_T`` (0, 1, or NaN
        where it is not known) and, on a simulated stream, ``oracle_T`` (the true probability). For each teacher E from
        elsewhere ``teacher_E/T``, its probability, NaN where it has none.
        """
        ...


@dataclass(frozen=True)
class TaskRows:
    """The rows of one table whose label of one task is known, column by column, (E,) each.

    Attributes:
        external: probabilities by teacher from elsewhere, NaN where it has none.
    """

    example_id: Ints
    group: Ints
    probability: Floats
    label: Bools
    oracle: Floats | None
    external: Mapping[str, Floats] = field(default_factory=dict)

    def take(self, index: npt.NDArray[np.intp]) -> TaskRows:
        """The rows at these positions."""
        oracle = None if self.oracle is None else self.oracle[index]
        external = {name: values[index] for name, values in self.external.items()}
        return TaskRows(
            self.example_id[index], self.group[index], self.probability[index], self.label[index], oracle, external
        )

    def as_predicted_by(self, teacher: str) -> TaskRows:
        """The rows of which a teacher from elsewhere has a prediction, with its probability for the model's."""
        rows = self.take(np.flatnonzero(~np.isnan(self.external[teacher])))
        return replace(rows, probability=rows.external[teacher])


def common_windows(reader: PredictionReader, model: str, other: str, first_us: int) -> Iterator[Window]:
    """Yields the windows of two models' predictions that begin at ``first_us`` or later."""
    has = {window.index for window in reader.windows(other)}
    for window in reader.windows(model):
        if window.start_us >= first_us and window.index in has:
            yield window


def task_rows(
    reader: PredictionReader, model: str, window: Window, tasks: Sequence[str] | None = None
) -> dict[str, TaskRows]:
    """Reads one window of a model's predictions, by task; by default all that it predicts.

    Raises:
        ValueError: a prediction is not a probability: the model diverged.
    """
    table = reader.predictions(model, window)
    if tasks is None:
        tasks = [name.removeprefix("prediction_") for name in table.column_names if name.startswith("prediction_")]
    return {task: _known_rows(table, task, f"model {model!r}, task {task!r}, window {window}") for task in tasks}


def _known_rows(table: pa.Table, task: str, where: str) -> TaskRows:
    label = _column(table, f"label_{task}")
    known = ~np.isnan(label)
    probability = _column(table, f"prediction_{task}")[known]
    # Written so that NaN fails too.
    wrong = ~((probability >= 0) & (probability <= 1))
    if wrong.any():
        raise ValueError(
            f"{where}: {np.count_nonzero(wrong)} of {wrong.size} predictions are not probabilities "
            f"(the first is {probability[wrong][0]}). the model diverged; a lower learning rate usually helps."
        )
    oracle = f"oracle_{task}"
    start, end = "teacher_", f"/{task}"
    teachers = [name for name in table.column_names if name.startswith(start) and name.endswith(end)]
    return TaskRows(
        example_id=_column(table, "example_id")[known],
        group=_column(table, "group")[known],
        probability=probability,
        label=label[known] > 0.5,
        oracle=_column(table, oracle)[known] if oracle in table.column_names else None,
        external={name.removeprefix(start).removesuffix(end): _column(table, name)[known] for name in teachers},
    )


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = table.column(name).to_numpy()
    return values
