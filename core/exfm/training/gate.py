"""Decides at the end of a window whether the snapshot after it is published or held.

A window is judged by its prequential predictions, which its commit counts, against the windows published before it and
against the newest published snapshot. So a resumed run decides as the undisturbed run does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exfm.config.training_sections import GateConfig
from exfm.evaluation.label_kinds import from_counters
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
from exfm.mappings import map_values
from exfm.storage.commits import CommitLog

Scores = Mapping[str, Moments]
"""Sums over the examples of a window, by task."""


@dataclass(frozen=True)
class GateHistory:
    """Describes the windows before a window, for its judgement.

    Attributes:
        published: scores of the newest published windows with examples, at most ``GateConfig.windows`` of them.
        held: by task, why the snapshot before is held; empty if it is published.
    """

    published: Sequence[Scores]
    held: Mapping[str, str]


@dataclass(frozen=True)
class PairedScores:
    """Sums over the same examples, which neither the model nor its predecessor had trained on.

    Attributes:
        model: of the model's prequential predictions.
        predecessor: of the predictions of its newest published snapshot.
    """

    model: Moments
    predecessor: Moments

    @property
    def excess(self) -> float | None:
        """Share by which the model's NE lies above the predecessor's; None where all labels are alike."""
        if not self.model.ne or not self.predecessor.ne:
            return None
        return self.model.ne / self.predecessor.ne - 1


@dataclass(frozen=True)
class Comparison:
    """Compares a model with its newest published snapshot, on the last rows of a window.

    Attributes:
        version: of the snapshot.
        tasks: sums by task.
    """

    version: int
    tasks: Mapping[str, PairedScores]

    @classmethod
    def from_counters(cls, counters: Mapping[str, Any]) -> Comparison | None:
        """Reads the comparison from the counters of a window's commit; None where there was none."""
        compared = counters.get("compared")  # none in windows of exfm before it compared
        if not compared:
            return None
        tasks: dict[str, PairedScores] = {}
        for task, pair in compared["tasks"].items():
            tasks[task] = PairedScores(from_counters(pair["model"]), from_counters(pair["predecessor"]))
        return cls(compared["version"], tasks)


def read_history(log: CommitLog, model: str, window: int, count: int) -> GateHistory:
    """Reads the newest published windows before a window from their commits.

    Args:
        window: index of the window; later commits, of a window that is repeated, are skipped.
        count: number of published windows to read.
    """
    published: list[Scores] = []
    held: Mapping[str, str] | None = None
    for index in log.newest_first("train", model):
        if index >= window:
            continue
        if len(published) == count:
            break
        counters = log.load("train", model, index).counters
        if held is None:
            held = counters.get("held", {})
        scores = map_values(from_counters, counters.get("prequential", {}))
        if not counters.get("held") and any(moments.examples for moments in scores.values()):
            published.append(scores)
    return GateHistory(published, held or {})


def judge(
    config: GateConfig, window: Window, scores: Scores, history: GateHistory, comparison: Comparison | None = None
) -> dict[str, str]:
    """Returns by task why the snapshot after a window is held; empty if it is published.

    A window is judged by all checks for which there is enough: published windows, labels. A task that no check judges
    keeps the judgement of the window before, because the model has hardly changed since.

    Args:
        scores: of the window's prequential predictions, of the tasks whose labels are known by its end.
        comparison: with the newest published snapshot; None before there is one.
    """
    held: dict[str, str] = {}
    for task, moments in scores.items():
        pair = comparison.tasks.get(task) if comparison is not None else None
        if pair is not None and (pair.excess is None or not _has_labels(config, pair.model)):
            pair = None
        reasons: list[str] | None = None
        if len(history.published) >= config.least_windows and _has_labels(config, moments):
            before = [earlier[task] for earlier in history.published if task in earlier]
            reasons = _reasons(config, task, moments, [past for past in before if _has_labels(config, past)])
        if comparison is not None and pair is not None:
            reasons = [*(reasons or ()), *_against_predecessor(config, task, pair, comparison.version, bool(reasons))]
        if reasons:
            held[task] = f"in window {window} {'; '.join(reasons)}"
        elif reasons is None and history.held.get(task):
            held[task] = history.held[task]
    return held


def _has_labels(config: GateConfig, moments: Moments) -> bool:
    """Tells whether chance moves the figures of a task by less than the gate's limits."""
    return moments.fewest >= config.min_labels


def _reasons(config: GateConfig, task: str, moments: Moments, before: Sequence[Moments]) -> list[str]:
    """Returns why the figures of a task are beyond the limits; empty if they are not."""
    reasons: list[str] = []
    usual = [past.ne for past in before if past.ne is not None]
    if config.ne_tolerance is not None and len(usual) >= config.least_windows and moments.ne is not None:
        # Ordinary drift stays near the range that it has shown: it may leave the range by as much as the range is wide.
        highest_ne = max(usual)
        limit = highest_ne + max(config.ne_tolerance * highest_ne, highest_ne - min(usual))
        if moments.ne > limit:
            reasons.append(
                f"its NE of {task} is {moments.ne:.4f}, above {limit:.4f}: it was between {min(usual):.4f} and "
                f"{highest_ne:.4f} in the {len(usual)} published windows before"
            )
    lowest, highest = config.calibration
    if type(moments) is not Moments:  # of a label that is not binary
        calibration = moments.calibration
        if calibration is not None and not lowest <= calibration <= highest:
            reasons.append(
                f"its calibration of {task} is {calibration:.3f}, and it may lie between {lowest:g} and {highest:g}"
            )
    elif not lowest * moments.positives <= moments.prediction_sum <= highest * moments.positives:
        reasons.append(
            f"it predicted {moments.prediction_sum:,.0f} positives of {task} where there were {moments.positives:,}, "
            f"and calibration may lie between {lowest:g} and {highest:g}"
        )
    return reasons


def _against_predecessor(
    config: GateConfig, task: str, pair: PairedScores, version: int, other_reasons: bool
) -> list[str]:
    """Returns why a task's predictions are worse than those of the newest published snapshot; empty if they are not.

    Args:
        other_reasons: whether another check holds the window, so that the comparison helps to tell the cause.
    """
    assert pair.excess is not None
    figures = f"{pair.model.ne:.4f}, and that of snapshot {version} {pair.predecessor.ne:.4f}"
    on_rows = f"on its last {pair.model.examples:,} rows its NE of {task} is {figures}"
    if config.predecessor_tolerance is not None and pair.excess > config.predecessor_tolerance:
        return [f"{on_rows}: {pair.excess:.1%} more, and at most {config.predecessor_tolerance:.0%} may be"]
    if other_reasons and pair.excess < 0:
        return [f"{on_rows}: so the labels have changed, or the rows are harder to predict"]
    return []
