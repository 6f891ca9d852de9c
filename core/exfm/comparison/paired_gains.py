"""Computes the gain of a run's model over the same model of another run, on the examples that both predicted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np

from exfm.comparison.run_files import RunFiles
from exfm.evaluation.evaluate import ExperimentView, first_scored_us
from exfm.evaluation.gains import add_common
from exfm.evaluation.intervals import PairedLosses, match
from exfm.evaluation.predictions import TaskRows, task_rows


def paired_gains(run: RunFiles, baseline: RunFiles) -> Iterator[dict[str, Any]]:
    """Yields an entry for each model and task that both runs predict, but for a model that both take from one run.

    Examples are matched by id, in windows of equal times that both runs score. An entry has no gain where the labels
    of matched examples differ, because these are not the same examples; its ``note`` says so.
    """
    # The later of both, because a model that has just begun would be compared with a model that has learned.
    first_us = max(_first_scored_us(run), _first_scored_us(baseline))
    for model, entry in run.results["models"].items():
        if model not in baseline.results["models"] or _same_model(run, baseline, model):
            continue
        tasks = [task for task in entry["tasks"] if task in baseline.results["models"][model]["tasks"]]
        losses, conflicts = _losses(run, baseline, model, tasks, first_us)
        for task in tasks:
            yield {
                "run": run.label,
                "baseline": baseline.label,
                "model": model,
                "task": task,
                **_figures(losses[task], conflicts[task], run),
            }


def _figures(losses: PairedLosses, conflicts: int, run: RunFiles) -> dict[str, Any]:
    if conflicts:
        note = f"the labels of {conflicts:,} of {losses.examples:,} examples with equal ids differ: other examples"
        nothing: dict[str, Any] = dict.fromkeys(("ne", "baseline_ne", "ne_gain_percent", "interval95"))
        return {"examples": losses.examples, **nothing, "note": note}
    ne, baseline_ne = losses.ne or (None, None)
    interval = losses.interval95(int(run.config["evaluation"]["replicates"]), int(run.config["seed"]))
    return {
        "examples": losses.examples,
        "ne": ne,
        "baseline_ne": baseline_ne,
        "ne_gain_percent": losses.gain,
        "interval95": None if interval is None else list(interval),
        "note": "" if losses.examples else "no common example",
    }


def _losses(
    run: RunFiles, baseline: RunFiles, model: str, tasks: list[str], first_us: int
) -> tuple[dict[str, PairedLosses], dict[str, int]]:
    """Sums the losses on common examples by task, and counts the examples whose labels differ."""
    losses = {task: PairedLosses() for task in tasks}
    conflicts = dict.fromkeys(tasks, 0)
    # By time, because each run counts its windows from its own beginning.
    windows = {(window.start_us, window.end_us): window for window in baseline.store.windows(model)}
    for window in run.store.windows(model):
        other = windows.get((window.start_us, window.end_us))
        if other is None or window.start_us < first_us:
            continue
        rows = task_rows(run.store, model, window, tasks)
        baseline_rows = task_rows(baseline.store, model, other, tasks)
        for task in tasks:
            # Losses of different kinds of label do not compare.
            if rows[task].kind == baseline_rows[task].kind:
                conflicts[task] += _label_conflicts(rows[task], baseline_rows[task])
                add_common(losses[task], rows[task], baseline_rows[task])
    return losses, conflicts


def _label_conflicts(rows: TaskRows, other: TaskRows) -> int:
    index, other_index = match(rows.example_id, other.example_id)
    return int(np.count_nonzero(rows.label[index] != other.label[other_index]))


def _same_model(run: RunFiles, baseline: RunFiles, model: str) -> bool:
    """Tells whether both runs take a model's predictions from the same folder, as points of a sweep do."""
    home, other = run.store.home(model), baseline.store.home(model)
    return home.model == other.model and home.store.workspace.url == other.store.workspace.url


def _first_scored_us(run: RunFiles) -> int:
    models = [(name, tuple(entry["tasks"])) for name, entry in run.results["models"].items()]
    after_us = 0
    for section in run.config["models"].values():
        # In windows that are trained on several times a model has seen the labels that it predicts.
        if section.get("epochs"):
            until = datetime.fromisoformat(str(section["epochs"]["until"]))
            until = until if until.tzinfo else until.replace(tzinfo=UTC)
            after_us = max(after_us, round(until.timestamp() * 1e6))
    view = ExperimentView(tuple(models), skip=run.skip, after_us=after_us)
    return first_scored_us(run.store, view)
