"""Computes the figures of results.json from the predictions of a run.

Predictions are read window by window, in a few passes, because a run's predictions may exceed memory. All states are
of constant size but for the list of windows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from exfm.evaluation.gains import ControlComparison, compare_with_control
from exfm.evaluation.grouped import GroupedAuc, GroupedRows, grouped_auc, score_runs, whole_groups
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.label_kinds import ClassMoments, ValueMoments
from exfm.evaluation.metric_sums import MetricSums, add_sums, metric_figures, metric_sums
from exfm.evaluation.metrics import AucHistogram, Moments, auc
from exfm.evaluation.pairs import Pair, compare_pair, distinct_pairs
from exfm.evaluation.predictions import PredictionReader, TaskRows, task_rows
from exfm.evaluation.recalibration import LogitHistogram
from exfm.evaluation.recall import GroupedRecall, grouped_recall
from exfm.interfaces.data_source import Window
from exfm.interfaces.metric import Metric
from exfm.interfaces.schema import LabelKind

__all__ = ["ControlComparison", "ExperimentView", "Pair", "PredictionReader", "evaluate"]


@dataclass(frozen=True)
class ExperimentView:
    """Holds the properties of an experiment that evaluation depends on.

    Attributes:
        models: every model's name and tasks.
        control_comparisons: the models with controls.
        pairs: the models that are compared with others.
        skip: fraction of the stream's examples that is left out, at its beginning and in whole windows, of the overall
            figures and the gains. The last window is never left out.
        after_us: time at or before which windows end that some model trains on several times; they do not count either.
        bootstrap_replicates, bootstrap_seed: of the intervals.
        recall_at: the k of each recall@k to compute.
        metrics: further figures of the tasks whose kind of label they are for.
    """

    models: tuple[tuple[str, tuple[str, ...]], ...]
    control_comparisons: tuple[ControlComparison, ...] = ()
    pairs: tuple[Pair, ...] = ()
    skip: float = 0.0
    after_us: int = 0
    bootstrap_replicates: int = 2000
    bootstrap_seed: int = 0
    recall_at: tuple[int, ...] = ()
    metrics: tuple[Metric, ...] = ()

    def interval95(self, losses: PairedLosses) -> list[float] | None:
        """Bootstraps the 95% interval of a gain, in the form of results.json."""
        interval = losses.interval95(self.bootstrap_replicates, self.bootstrap_seed)
        return None if interval is None else list(interval)


def evaluate(reader: PredictionReader, view: ExperimentView) -> dict[str, Any]:
    """Scores all models, and compares models with their controls and with the other models of a pair.

    Returns:
        ``models``, ``gains`` and ``comparisons`` of results.json, and ``first_scored_us``, the start of the first
        window that the overall figures cover. Figures without a meaning (an AUC where all labels are alike) are None;
        all others are finite.

    Raises:
        ValueError: a prediction is not a probability, or not finite.
    """
    first_us = first_scored_us(reader, view)
    tasks_of_model = dict(view.models)
    models: dict[str, Any] = {}
    for name, tasks in view.models:
        models[name] = _score_model(reader, view, name, tasks, first_us)
    gains: list[dict[str, Any]] = []
    for comparison in view.control_comparisons:
        gains += compare_with_control(reader, tasks_of_model, comparison, first_us, view.interval95)
    comparisons: list[dict[str, Any]] = []
    for pair in distinct_pairs(view.pairs):
        comparisons += compare_pair(reader, pair, first_us, view.interval95)
    return {"models": models, "first_scored_us": first_us, "gains": gains, "comparisons": comparisons}


def first_scored_us(reader: PredictionReader, view: ExperimentView) -> int:
    """Finds the start of the first scored window: the same for all models, so that their figures cover the same time.

    Windows that a model trains on several times count for no model, because all figures are of a single pass; where
    there are no others yet, nothing is scored. Positions in the stream are counted by the model with the most examples,
    because others may see a share of the traffic. The last window is never left out by ``skip``. Windows whose
    predictions were removed count in the positions, and are scored for no model, whichever model lacks them.
    """
    most: list[tuple[int, int]] = []
    total = -1  # below the examples of any model, so that the first model replaces it
    for name, _ in view.models:
        windows = [*reader.let_go(name), *reader.windows(name)]
        counts = [(window.start_us, reader.examples(name, window)) for window in windows]
        examples = sum(rows for _, rows in counts)
        if examples > total:
            most, total = counts, examples
    if not most:
        return 0
    first_us, before = most[-1][0], 0
    for start_us, rows in most:
        if before >= view.skip * total:
            first_us = start_us
            break
        before += rows
    after_us = view.after_us
    for name, _ in view.models:
        after_us = max([after_us, *(window.end_us for window in reader.let_go(name))])
    if not after_us:
        return first_us
    ends: dict[int, int] = {}
    for name, _ in view.models:
        ends |= {window.end_us: window.start_us for window in reader.windows(name)}
    single_pass = [start_us for end_us, start_us in ends.items() if end_us > after_us]
    # Without any, the end of the newest window, at which none begins: nothing is scored.
    return max(first_us, min(single_pass, default=max(ends)))


@dataclass
class GroupedScores:
    """Accumulates a model's figures inside groups for a task.

    Attributes:
        recall: recall@k by k.
    """

    auc: GroupedAuc
    recall: dict[int, GroupedRecall]

    def add(self, rows: GroupedRows) -> None:
        """Adds all rows of some groups."""
        # AUC and every recall@k need rows sorted by group and score, and sorting is most of the cost: it is done once.
        runs = score_runs(rows)
        self.auc += grouped_auc(runs)
        self.recall = {k: recall + grouped_recall(runs, k) for k, recall in self.recall.items()}


@dataclass
class TaskScores:
    """Accumulates a model's figures for a task over the windows of a stream."""

    metrics: tuple[Metric, ...] = ()
    kind: LabelKind = "binary"
    overall: Moments = field(default_factory=Moments)
    bayes: Moments = field(default_factory=Moments)
    histogram: AucHistogram = field(default_factory=AucHistogram)
    logits: LogitHistogram = field(default_factory=LogitHistogram)
    windows: list[dict[str, Any]] = field(default_factory=list)
    examples: int = 0
    unlabelled: int = 0
    metric_sums: MetricSums = field(default_factory=dict)

    def add(self, window: Window, rows: TaskRows, scored: bool) -> None:
        """Adds a window to ``windows`` and, where it is ``scored``, to the overall figures."""
        self.kind = rows.kind
        moments = rows.moments(rows.probability)
        entry = {
            "window": window.index,
            "start": str(window),
            "examples": rows.label.size,
            "ne": moments.ne,
        }
        if rows.kind == "binary":
            entry["auc"] = auc(rows.probability, rows.label, rows.weight)
        sums = metric_sums(self.metrics, rows)
        if sums:
            entry["metrics"] = metric_figures(self.metrics, sums)
        bayes = Moments()
        if rows.oracle is not None:
            bayes = rows.moments(rows.oracle)
            entry["bayes_ne"] = bayes.ne
        self.windows.append(entry)
        if scored:
            self.overall += moments
            self.examples += rows.label.size
            self.unlabelled += rows.unlabelled
            self.bayes += bayes
            add_sums(self.metric_sums, sums)
            if rows.kind == "binary":
                self.histogram.add(rows.probability, rows.label, rows.weight)
                self.logits.add(rows.probability, rows.label, rows.weight)

    def result(self, grouped: GroupedScores) -> dict[str, Any]:
        """Returns the entry of the task in results.json."""
        recalibration = self.logits.recalibration()
        figures: dict[str, Any] = {
            "examples": self.examples,
            "unlabelled": self.unlabelled,
            "ne": self.overall.ne,
            "ne_recalibrated": None,
            "recalibration": None,
            "auc": self.histogram.auc,
            "auc_error_bound": self.histogram.error_bound,
            "gauc": grouped.auc.gauc,
            "log_loss": None if self.kind == "regression" else self.overall.log_loss,
            "calibration": self.overall.calibration,
            "base_rate": self.overall.base_rate,
        }
        if recalibration is not None:
            figures["ne_recalibrated"] = recalibration.ne
            figures["recalibration"] = {"scale": recalibration.scale, "shift": recalibration.shift}
        if self.bayes.ne is not None and self.overall.ne is not None:
            figures["bayes_ne"] = self.bayes.ne
            figures["ne_above_bayes"] = self.overall.ne - self.bayes.ne
        if self.metric_sums:
            figures["metrics"] = metric_figures(self.metrics, self.metric_sums)
        if self.kind != "binary":
            figures |= _figures_of_kind(self.kind, self.overall)
        elif grouped.recall:
            # Keys are text because JSON has no others.
            figures["recall_at"] = {str(k): recall.recall for k, recall in grouped.recall.items()}
            figures["recall_counts"] = {str(k): recall.counts for k, recall in grouped.recall.items()}
        return figures | {"windows": self.windows}


def _figures_of_kind(kind: LabelKind, overall: Moments) -> dict[str, Any]:
    """Returns the figures that only a label that is not binary has; those of a binary label are None there."""
    figures: dict[str, Any] = {"kind": kind, "baseline": overall.baseline}
    if isinstance(overall, ValueMoments):
        figures |= {"squared_error": overall.log_loss, "mean_label": overall.mean_label}
    if isinstance(overall, ClassMoments):
        figures["accuracy"] = overall.accuracy
    return figures


def _score_model(
    reader: PredictionReader, view: ExperimentView, model: str, tasks: tuple[str, ...], first_us: int
) -> dict[str, Any]:
    """Scores all tasks of a model: a pass over its windows for the sums, then passes for figures inside groups."""
    scores = {task: TaskScores(view.metrics) for task in tasks}
    for window in reader.windows(model):
        for task, rows in task_rows(reader, model, window, tasks).items():
            scores[task].add(window, rows, scored=window.start_us >= first_us)

    # Groups rank the examples by a probability.
    binary = [task for task in tasks if scores[task].kind == "binary"]

    def grouped_rows() -> Iterator[tuple[str, GroupedRows]]:
        for window in reader.windows(model):
            if window.start_us >= first_us:
                for task, rows in task_rows(reader, model, window, binary).items():
                    yield task, GroupedRows(rows.group, rows.probability, rows.label)

    grouped: dict[str, GroupedScores] = {}
    for task in tasks:
        grouped[task] = GroupedScores(GroupedAuc(), {k: GroupedRecall() for k in view.recall_at})
    scored_rows = sum(scores[task].examples for task in binary)
    for task, groups in whole_groups(grouped_rows, rows=scored_rows):
        grouped[task].add(groups)
    return {"tasks": {task: score.result(grouped[task]) for task, score in scores.items()}}
