"""Collects the labels that the processes read again, and keeps those that were not known when predicted."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress

import pyarrow as pa

from exfm.data.batch import Batch
from exfm.interfaces.data_source import TimeRange
from exfm.interfaces.process_group import ProcessGroup
from exfm.storage.workspace import LetGoError
from exfm.supervision.late_labels import PredictedLabels
from exfm.supervision.store import Store


class LateLabelCollector:
    """Collects the labels of a model's earlier examples while a window runs.

    All processes call it in the same order. Rank zero keeps the predictions of the windows that it has opened.

    Args:
        store: the run's folder.
        process_group: the processes.
        model: the model's name.
        window: index of the window that runs.
    """

    def __init__(self, store: Store, process_group: ProcessGroup, model: str, window: int) -> None:
        self._store = store
        self._process_group = process_group
        self._model = model
        self._window = window
        self._opened: dict[int, PredictedLabels] = {}
        self._collects = False

    def open(self, events: TimeRange, tasks: Collection[str]) -> None:
        """Opens the committed windows of events that are read again, where a label of a task was not known."""
        if self._process_group.is_rank_zero:
            self._open_windows(events, tasks)
        # All processes must know whether rows are gathered, because gathering is a collective.
        self._collects = not self._process_group.all_agree(not self._opened)

    def _open_windows(self, events: TimeRange, tasks: Collection[str]) -> None:
        log = self._store.log
        last: int | None = None
        for index in log.newest_first("train", self._model):
            if index >= self._window or index in self._opened or (last is not None and index > last):
                continue
            commit = log.load("train", self._model, index)
            window = commit.window
            if window.end_us <= events.start_us:
                return
            if last is None:
                # Windows are equally long: the manifests of those after the events need not be read.
                last = index - max(0, (window.end_us - events.end_us) // (window.end_us - window.start_us))
            scored = commit.counters.get("prequential", {})
            unknown = any(task in scored and scored[task]["examples"] < commit.counters["examples"] for task in tasks)
            if unknown and window.start_us < events.end_us and commit.files:
                with suppress(LetGoError):
                    self._opened[index] = self._store.predicted_labels(self._model, window)

    def add(self, examples: Batch, tasks: Collection[str]) -> None:
        """Takes the labels of some tasks of a chunk.

        Args:
            examples: this process's rows of the chunk; those without a prediction are left out.
        """
        if not self._collects:
            return
        columns = {"example_id": examples.example_id.numpy()}
        columns |= {f"label_{task}": examples.labels[task].numpy() for task in tasks}
        columns |= {f"weight_{task}": examples.weights[task].numpy() for task in tasks if task in examples.weights}
        for rows in _gather(self._process_group, pa.table(columns)):
            for predicted in self._opened.values():
                predicted.add(rows)

    def write(self) -> None:
        """Writes the labels that became known, on rank zero."""
        for index, predicted in sorted(self._opened.items()):
            if predicted.differ:
                self._store.late_labels.write(self._model, index, predicted.changed())


def _gather(process_group: ProcessGroup, rows: pa.Table) -> list[pa.Table]:
    """Gathers the rows of each process on rank zero; returns none on the others."""
    if process_group.world_size == 1:
        return [rows]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    received = process_group.gather_bytes(sink.getvalue().to_pybytes())
    return [pa.ipc.open_stream(data).read_all() for data in received]
