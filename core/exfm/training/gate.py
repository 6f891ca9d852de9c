"""Decides at the end of a window whether the snapshot after it is published or held.

A window is judged by its prequential predictions, which its commit counts, against the windows published before it.
So a resumed run decides as the undisturbed run does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exfm.config.training_sections import GateConfig
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
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
        scores = {task: Moments(**counted) for task, counted in counters.get("prequential", {}).items()}
        if not counters.get("held") and any(moments.examples for moments in scores.values()):
            published.append(scores)
    return GateHistory(published, held or {})


def judge(config: GateConfig, window: Window, scores: Scores, history: GateHistory) -> dict[str, str]:
    """Returns by task why the snapshot after a window is held; empty if it is published.

    A task with too few labels keeps the judgement of the window before, because the model has hardly changed since.

    Args:
        scores: of the window's prequential predictions, of the tasks whose labels are known by its end.
    """
    if len(history.published) < config.windows:
        return {}
    held: dict[str, str] = {}
    for task, moments in scores.items():
        reason = history.held.get(task, "")
        if _has_labels(config, moments):
            before = [earlier[task] for earlier in history.published if task in earlier]
            reason = _reason(config, task, window, moments, [past for past in before if _has_labels(config, past)])
        if reason:
            held[task] = reason
    return held


def _has_labels(config: GateConfig, moments: Moments) -> bool:
    """Tells whether chance moves the figures of a task by less than the gate's limits."""
    # Predicted labels count too: a window of some thousand examples without any positive has a broken label.
    positives = max(moments.positives, moments.prediction_sum)
    negatives = moments.examples - min(moments.positives, moments.prediction_sum)
    return min(positives, negatives) >= config.min_labels


def _reason(config: GateConfig, task: str, window: Window, moments: Moments, before: Sequence[Moments]) -> str:
    """Returns why the figures of a task are beyond the limits, or an empty string."""
    reasons: list[str] = []
    usual = [past.ne for past in before if past.ne is not None]
    if usual and moments.ne is not None:
        mean = sum(usual) / len(usual)
        limit = mean * (1 + config.ne_tolerance)
        if moments.ne > limit:
            reasons.append(
                f"its NE of {task} is {moments.ne:.4f}, above {limit:.4f}, which is {config.ne_tolerance:.0%} over the "
                f"mean of the {len(usual)} published windows before"
            )
    lowest, highest = config.calibration
    if not lowest * moments.positives <= moments.prediction_sum <= highest * moments.positives:
        reasons.append(
            f"it predicted {moments.prediction_sum:,.0f} positives of {task} where there were {moments.positives:,}, "
            f"and calibration may lie between {lowest:g} and {highest:g}"
        )
    if not reasons:
        return ""
    return f"in window {window} {'; '.join(reasons)}"
