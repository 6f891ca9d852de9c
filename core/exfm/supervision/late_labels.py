"""Keeps labels that became known, or changed, after their examples had been predicted.

A label that is null when its example is predicted may be known when it is read again. It is then written into a file
beside the window's predictions, which ``commits/train/MODEL/WINDOW.labels.json`` names: the window's manifest and its
files do not change. Readers of predictions get the later label. The file is replaced when more labels become known.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.data.label_columns import columns_by_task
from exfm.errors import RunError
from exfm.storage.hashing import FileRecord
from exfm.storage.manifests import file_records, seal, unseal
from exfm.storage.workspace import LetGoError, MissingFileError, Workspace
from exfm.supervision.id_search import Ids, search
from exfm.supervision.row_files import RowWriter
from exfm.supervision.stored_rows import read_rows

Floats = npt.NDArray[np.float32]

_WEIGHT = "weight_"
"""Begins the name of the column of a task's weights."""

_ATTEMPTS = 3
"""Bounds the attempts to read a file that may be replaced at the same time."""


class LateLabels:
    """Reads and writes the late labels of a run's models.

    Args:
        workspace: the run's folder.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def record(self, model: str, window: int) -> FileRecord | None:
        """Returns the file of a window's late labels; None if there is none.

        Raises:
            RunError: its manifest is damaged.
        """
        path = labels_manifest(model, window)
        try:
            manifest = unseal(self._workspace.read(path))
            return None if manifest is None else file_records(manifest, model)["labels"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError) as error:
            url = self._workspace.url
            raise RunError(f"{url}/{path}: the manifest is damaged: {error}; `exfm repair {url}` removes it") from error

    def damage(self, model: str, window: int) -> str:
        """Describes the damage of a window's late labels; empty if they are whole, removed by a vacuum, or none."""
        try:
            record = self.record(model, window)
            if record is not None:
                self._workspace.read_checked(record)
        except LetGoError:
            return ""
        except RunError as error:
            return str(error)
        return ""

    def apply(self, model: str, window: int, predictions: pa.Table) -> pa.Table:
        """Replaces labels of a window's predictions, and their weights, by those that became known later."""
        late = self._read(model, window)
        if late is None:
            return predictions
        positions, has_row = _positions(_ids(predictions), _ids(late))
        for number, name in enumerate(predictions.column_names):
            if name.startswith(("label_", _WEIGHT)):
                values = predictions.column(name).to_numpy().copy()
                later = late.column(name).to_numpy()
                is_later = has_row & ~np.isnan(later)
                values[positions[is_later]] = later[is_later]
                column = pa.array(values, from_pandas=True)
                predictions = predictions.set_column(number, predictions.schema.field(number), column)
        return predictions

    def _read(self, model: str, window: int) -> pa.Table | None:
        """Reads the file of a window's late labels; None if there is none."""
        for attempt in range(_ATTEMPTS):
            record = self.record(model, window)
            if record is None:
                return None
            try:
                return read_rows(self._workspace, record)
            except MissingFileError:
                if attempt == _ATTEMPTS - 1:
                    raise
        return None

    def write(self, model: str, window: int, labels: pa.Table) -> None:
        """Writes the late labels of a window in place of those before, if they differ.

        Args:
            labels: rows of predictions with the labels that became known, null for other tasks.
        """
        before = self.record(model, window)
        # Its name begins as that of the window's predictions, whose place it takes in part.
        path = f"predictions/{model}/window-{window:06d}-labels-{{digest}}.parquet"
        writer = RowWriter(self._workspace, path, labels.schema)
        writer.write(labels)
        record = writer.close()
        if record == before:
            return
        self._workspace.write(labels_manifest(model, window), seal({"files": {"labels": asdict(record)}}))
        if before is not None:
            self._workspace.remove_file(before.path)


class PredictedLabels:
    """Compares labels that are read again with those beside a window's predictions.

    Args:
        predictions: the window's rows as they were committed.
        late: the same rows with the late labels that are known so far.

    Attributes:
        example_ids: the ids of the rows.
        differ: whether a label has become known.
    """

    def __init__(self, predictions: pa.Table, late: pa.Table) -> None:
        self._predictions = predictions
        self.example_ids = _ids(predictions)
        self._order = np.argsort(self.example_ids, kind="stable")
        self._labels: dict[str, Floats] = {}
        self._weights: dict[str, Floats] = {}
        for name in late.column_names:
            if name.startswith("label_"):
                self._labels[name] = late.column(name).to_numpy().copy()
            elif name.startswith(_WEIGHT):
                self._weights[name] = late.column(name).to_numpy().copy()
        self.differ = False

    def add(self, rows: pa.Table) -> None:
        """Takes labels of the window's examples; a label that is not known changes nothing.

        Args:
            rows: ``example_id``, and ``label_TASK`` for some tasks, with ``weight_TASK`` where examples have weights.
        """
        if not self.example_ids.size:
            return
        positions, has_row = _positions(self.example_ids, _ids(rows), self._order)
        for name in rows.column_names:
            if name in self._labels:
                values = rows.column(name).to_numpy()
                # A label that was NaN is unequal, too.
                changed = has_row & ~np.isnan(values) & (self._labels[name][positions] != values)
                self._labels[name][positions[changed]] = values[changed]
                weight = f"{_WEIGHT}{name.removeprefix('label_')}"
                if weight in self._weights and weight in rows.column_names:
                    # A negative weighs more than an example whose label was not known, where negatives are sampled.
                    self._weights[weight][positions[changed]] = rows.column(weight).to_numpy()[changed]
                self.differ |= bool(changed.any())

    def changed(self) -> pa.Table:
        """Returns rows whose label of some task is later than its prediction, null for the other tasks."""
        changed: dict[str, npt.NDArray[np.bool_]] = {}
        for name, values in self._labels.items():
            committed = self._predictions.column(name).to_numpy()
            changed[name.removeprefix("label_")] = ~np.isnan(values) & (values != committed)
        rows = np.flatnonzero(np.any(list(changed.values()), axis=0)) if changed else np.zeros(0, np.int64)
        columns: dict[str, npt.NDArray[np.generic]] = {}
        for name in self._predictions.column_names:
            column = self._predictions.column(name).to_numpy()[rows]
            # A figure of a task without a later label is null; other columns, such as ids, are kept.
            is_figure = pa.types.is_floating(self._predictions.schema.field(name).type)
            columns[name] = np.full(rows.size, np.nan, np.float32) if is_figure else column
        predicted = columns_by_task(self._predictions.column_names)
        for task, is_changed in changed.items():
            label, weight = f"label_{task}", f"{_WEIGHT}{task}"
            # A prediction stays beside its label, so that the row can be scored alone.
            now = {name: self._predictions.column(name).to_numpy() for name in predicted[task]}
            now[label] = self._labels[label]
            if weight in self._weights:
                now[weight] = self._weights[weight]
            for name, values in now.items():
                columns[name] = np.where(is_changed[rows], values[rows], np.nan)
        arrays = [
            pa.array(columns[field.name], from_pandas=True).cast(field.type) for field in self._predictions.schema
        ]
        return pa.table(arrays, schema=self._predictions.schema)


def labels_manifest(model: str, window: int) -> str:
    """Returns the path of the manifest of a window's late labels."""
    return f"commits/train/{model}/{window:06d}.labels.json"


def _ids(table: pa.Table) -> Ids:
    ids: Ids = table.column("example_id").to_numpy()
    return ids


def _positions(ids: Ids, queries: Ids, order: npt.NDArray[np.intp] | None = None) -> tuple[Ids, npt.NDArray[np.bool_]]:
    """Returns the position of each queried id among ids, and whether it is there; otherwise its position is arbitrary.

    Args:
        order: sorts the ids; computed by default.
    """
    if not ids.size:
        return np.zeros(queries.size, np.int64), np.zeros(queries.size, bool)
    if order is None:
        # Stable, so that equal ids give the position of the first.
        order = np.argsort(ids, kind="stable")
    index, exists = search(ids[order], queries)
    return order[index], exists
