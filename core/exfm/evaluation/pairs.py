"""Compares pairs of models on the examples that both predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from exfm.evaluation.gains import Interval, add_common
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.predictions import PredictionReader, common_windows, task_rows


@dataclass(frozen=True)
class Pair:
    """Names a model and the baseline that it is compared with, on tasks that both predict."""

    model: str
    baseline: str
    tasks: tuple[str, ...]


def compare_pair(reader: PredictionReader, pair: Pair, first_us: int, interval95: Interval) -> list[dict[str, Any]]:
    """Compares two models: an entry of ``comparisons`` in results.json for each task.

    Args:
        first_us: start of the first window that counts.
    """
    losses = {task: PairedLosses() for task in pair.tasks}
    for window in common_windows(reader, pair.model, pair.baseline, first_us):
        model = task_rows(reader, pair.model, window, pair.tasks)
        baseline = task_rows(reader, pair.baseline, window, pair.tasks)
        for task in pair.tasks:
            add_common(losses[task], model[task], baseline[task])
    return [_comparison(pair, task, losses[task], interval95) for task in pair.tasks]


def _comparison(pair: Pair, task: str, losses: PairedLosses, interval95: Interval) -> dict[str, Any]:
    """Describes the comparison on a task for results.json."""
    ne, baseline_ne = losses.ne or (None, None)
    return {
        "model": pair.model,
        "baseline": pair.baseline,
        "task": task,
        "examples": losses.examples,
        "ne": ne,
        "baseline_ne": baseline_ne,
        "ne_gain_percent": losses.gain,
        "interval95": interval95(losses),
    }


def distinct_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Merges pairs of the same two models, so that no task is compared twice."""
    # Dictionaries in place of sets, because the order of results.json follows the experiment file.
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    for pair in pairs:
        tasks.setdefault((pair.model, pair.baseline), {}).update(dict.fromkeys(pair.tasks))
    return [Pair(model, baseline, tuple(named)) for (model, baseline), named in tasks.items()]
