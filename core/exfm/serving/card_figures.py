"""Reads the figures of a model until a snapshot from results.json, or computes them from the committed predictions."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any

import pyarrow as pa

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.run_files import RESULTS_FILE
from exfm.errors import RunError
from exfm.evaluation.evaluate import evaluate
from exfm.experiment.run import evaluation_view
from exfm.interfaces.data_source import Window
from exfm.mappings import values_at
from exfm.storage.snapshots import Snapshot
from exfm.supervision.store import Store


@dataclass(frozen=True)
class CardFigures:
    """Holds the figures of a model over the windows until a snapshot.

    Attributes:
        origin: where the figures are from, or why there are none.
        tasks: figures by task, as in results.json.
        gains: the model's entries of ``gains`` in results.json.
    """

    origin: str
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gains: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class _ReaderUntil:
    """Reads the predictions of the windows that end at or before a time."""

    store: Store
    watermark_us: int

    def windows(self, model: str) -> Sequence[Window]:
        return self._until(self.store.windows(model))

    def let_go(self, model: str) -> Sequence[Window]:
        return self._until(self.store.let_go(model))

    def _until(self, windows: Sequence[Window]) -> Sequence[Window]:
        # Windows are in order: those that end at the watermark or before come first.
        return windows[: bisect_right(windows, self.watermark_us, key=attrgetter("end_us"))]

    def examples(self, model: str, window: Window) -> int:
        return self.store.examples(model, window)

    def predictions(self, model: str, window: Window) -> pa.Table:
        return self.store.predictions(model, window)


def card_figures(
    experiment: Experiment, store: Store, arm: Arm, snapshot: Snapshot, may_compute: bool = True
) -> CardFigures:
    """Returns the figures of a model over the windows until a snapshot; the snapshot's window is the last.

    Those of results.json are taken where they end with the snapshot. Otherwise the predictions are read again.

    Args:
        store: the experiment's folder.
        may_compute: whether to read the predictions, which takes as long as an evaluation.
    """
    reader = _ReaderUntil(store, snapshot.watermark_us)
    results = store.workspace.read_json(RESULTS_FILE) if store.workspace.exists(RESULTS_FILE) else {"models": {}}
    if arm.name in results["models"] and _ends_with_snapshot(results["models"][arm.name], reader, arm.name):
        gains = [gain for gain in results["gains"] if gain["model"] == arm.name]
        tasks = results["models"][arm.name]["tasks"]
        return CardFigures(f"From the run's {RESULTS_FILE}.{_left_out(reader, arm.name, tasks)}", tasks, gains)
    if not may_compute:
        return CardFigures(f"Not computed: no {RESULTS_FILE} ends with this snapshot, and --no-figures was given.")
    view = evaluation_view(experiment)
    compared = tuple(entry for entry in view.control_comparisons if entry.model == arm.name)
    names = {arm.name}
    for entry in compared:
        names |= {entry.control, *entry.teachers}
    models = [model for model in view.models if model[0] in names]
    view = replace(view, models=tuple(models), control_comparisons=compared, pairs=())
    try:
        figures = evaluate(reader, view)
    except (RunError, ValueError) as error:  # predictions that are missing, damaged, or no probabilities
        return CardFigures(f"Not computed: {error}")
    origin = f"Computed at export from the committed predictions: no {RESULTS_FILE} ends with this snapshot."
    tasks = figures["models"][arm.name]["tasks"]
    return CardFigures(f"{origin}{_left_out(reader, arm.name, tasks)}", tasks, figures["gains"])


def _left_out(reader: _ReaderUntil, model: str, tasks: Mapping[str, Mapping[str, Any]]) -> str:
    """Names the windows that figures lack because their predictions were removed; empty if they lack none."""
    listed = {entry["window"] for figures in tasks.values() for entry in figures["windows"]}
    gone = [window for window in reader.let_go(model) if window.index not in listed]
    if not gone:
        return ""
    return f" They leave {len(gone)} windows out, until {gone[-1]}, whose predictions were removed by `exfm vacuum`."


def _ends_with_snapshot(entry: Mapping[str, Any], reader: _ReaderUntil, model: str) -> bool:
    """Tells whether a model's entry in results.json is of the windows that the reader has, and of no other.

    It may have figures of windows whose predictions were removed after it was written.
    """
    gone, windows = reader.let_go(model), reader.windows(model)
    stored = list(map(attrgetter("index"), windows))
    committed = [*map(attrgetter("index"), gone), *stored]
    for figures in entry["tasks"].values():
        if values_at(figures["windows"], "window") not in (stored, committed):
            return False
    return bool(entry["examples"] == sum(reader.examples(model, window) for window in (*gone, *windows)))
