"""From the predictions of a run to the figures of its results.json.

The predictions are read a window at a time, a few times over; nothing that is kept grows with the stream but the list
of windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exfm.evaluation.gains import Arm, compare_arm
from exfm.evaluation.grouped import GroupedAuc, GroupedRows, grouped_auc, score_runs, whole_groups
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.metrics import AucHistogram, Moments, auc
from exfm.evaluation.pairs import Pair, compare_pair, distinct_pairs
from exfm.evaluation.predictions import PredictionReader, TaskRows, task_rows
from exfm.evaluation.recalibration import LogitHistogram
from exfm.evaluation.recall import GroupedRecall, grouped_recall
from exfm.interfaces.data_source import Window

__all__ = ["Arm", "ExperimentView", "Pair", "PredictionReader", "evaluate"]


@dataclass(frozen=True)
class ExperimentView:
    """What evaluation needs to know of an experiment.

    Attributes:
        models: every model's name and tasks.
        arms: the models with controls.
        pairs: the models that are compared with others.
        skip: fraction of the stream's examples that is left out, at its beginning and in whole windows, of the overall
            figures and the gains. The last window is never left out.
        bootstrap_replicates, bootstrap_seed: of the intervals.
        recall_at: the k of each recall@k to compute.
    """

    models: tuple[tuple[str, tuple[str, ...]], ...]
    arms: tuple[Arm, ...] = ()
    pairs: tuple[Pair, ...] = ()
    skip: float = 0.0
    bootstrap_replicates: int = 2000
    bootstrap_seed: int = 0
    recall_at: tuple[int, ...] = ()

    def interval95(self, losses: PairedLosses) -> list[float] | None:
        """Bootstraps the 95% interval of a gain, as results.json has it."""
        interval = losses.interval95(self.bootstrap_replicates, self.bootstrap_seed)
        return None if interval is None else list(interval)


def evaluate(reader: PredictionReader, view: ExperimentView) -> dict[str, Any]:
    """Scores all models and compares the arms and the pairs: ``models``, ``gains`` and ``comparisons`` of results.json.

    With them comes ``first_scored_us``, where the stretch that the overall figures describe begins.

    Figures without a meaning (an AUC where all labels are alike) are None; all others are finite.

    Raises:
        ValueError: a prediction is not a probability.
    """
    first_us = _first_scored_us(reader, view)
    tasks_of = dict(view.models)
    arms = (compare_arm(reader, tasks_of, arm, first_us, view.interval95) for arm in view.arms)
    pairs = (compare_pair(reader, pair, first_us, view.interval95) for pair in distinct_pairs(view.pairs))
    return {
        "models": {name: _score_model(reader, view, name, tasks, first_us) for name, tasks in view.models},
        "first_scored_us": first_us,
        "gains": [entry for entries in arms for entry in entries],
        "comparisons": [entry for entries in pairs for entry in entries],
    }


def _first_scored_us(reader: PredictionReader, view: ExperimentView) -> int:
    """Where the overall figures begin: the same time for all models, so that they describe the same stretch.

    Positions in the stream are counted by the model that saw most of it. The last window is never left out.
    """
    counts = {
        name: [(window.start_us, reader.examples(name, window)) for window in reader.windows(name)]
        for name, _ in view.models
    }
    widest = max(counts.values(), key=lambda windows: sum(examples for _, examples in windows), default=[])
    total = sum(examples for _, examples in widest)
    before = np.cumsum([0, *(examples for _, examples in widest)])
    scored = [start_us for (start_us, _), rows in zip(widest, before, strict=False) if rows >= view.skip * total]
    return scored[0] if scored else (widest[-1][0] if widest else 0)


@dataclass
class GroupedScores:
    """One model's figures for one task inside groups; ``recall`` by its k."""

    auc: GroupedAuc
    recall: dict[int, GroupedRecall]

    def add(self, rows: GroupedRows) -> None:
        """Adds all rows of some groups."""
        runs = score_runs(rows)
        self.auc += grouped_auc(runs)
        self.recall = {k: recall + grouped_recall(runs, k) for k, recall in self.recall.items()}


@dataclass
class TaskScores:
    """One model's figures for one task, while the stream goes by."""

    overall: Moments = field(default_factory=Moments)
    bayes: Moments = field(default_factory=Moments)
    histogram: AucHistogram = field(default_factory=AucHistogram)
    logits: LogitHistogram = field(default_factory=LogitHistogram)
    windows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, window: Window, rows: TaskRows, scored: bool) -> None:
        """Adds a window to ``windows`` and, where it is ``scored``, to the overall figures."""
        here = Moments.of(rows.probability, rows.label)
        entry = {
            "window": window.index,
            "start": str(window),
            "examples": here.examples,
            "ne": here.ne,
            "auc": auc(rows.probability, rows.label),
        }
        bayes = Moments() if rows.oracle is None else Moments.of(rows.oracle, rows.label)
        if rows.oracle is not None:
            entry["bayes_ne"] = bayes.ne
        self.windows.append(entry)
        if scored:
            self.overall += here
            self.bayes += bayes
            self.histogram.add(rows.probability, rows.label)
            self.logits.add(rows.probability, rows.label)

    def result(self, grouped: GroupedScores) -> dict[str, Any]:
        """The task's part of results.json."""
        recalibration = self.logits.recalibration()
        figures: dict[str, Any] = {
            "examples": self.overall.examples,
            "ne": self.overall.ne,
            "ne_recalibrated": None,
            "recalibration": None,
            "auc": self.histogram.auc,
            "auc_error_bound": self.histogram.error_bound,
            "gauc": grouped.auc.gauc,
            "log_loss": self.overall.log_loss,
            "calibration": self.overall.calibration,
            "base_rate": self.overall.base_rate,
        }
        if recalibration is not None:
            figures["ne_recalibrated"] = recalibration.ne
            figures["recalibration"] = {"scale": recalibration.scale, "shift": recalibration.shift}
        if self.bayes.ne is not None and self.overall.ne is not None:
            figures["bayes_ne"] = self.bayes.ne
            figures["ne_above_bayes"] = self.overall.ne - self.bayes.ne
        if grouped.recall:
            figures["recall_at"] = {str(k): recall.recall for k, recall in grouped.recall.items()}
            figures["recall_counts"] = {
                str(k): {"groups": recall.groups, "examples": recall.examples} for k, recall in grouped.recall.items()
            }
        return figures | {"windows": self.windows}


def _score_model(
    reader: PredictionReader, view: ExperimentView, model: str, tasks: tuple[str, ...], first_us: int
) -> dict[str, Any]:
    scores = {task: TaskScores() for task in tasks}
    for window in reader.windows(model):
        for task, rows in task_rows(reader, model, window, tasks).items():
            scores[task].add(window, rows, scored=window.start_us >= first_us)

    def grouped_rows() -> Iterator[tuple[str, GroupedRows]]:
        for window in reader.windows(model):
            if window.start_us >= first_us:
                for task, rows in task_rows(reader, model, window, tasks).items():
                    yield task, GroupedRows(rows.group, rows.probability, rows.label)

    grouped = {task: GroupedScores(GroupedAuc(), {k: GroupedRecall() for k in view.recall_at}) for task in tasks}
    for task, groups in whole_groups(grouped_rows, rows=sum(score.overall.examples for score in scores.values())):
        grouped[task].add(groups)
    return {"tasks": {task: score.result(grouped[task]) for task, score in scores.items()}}
