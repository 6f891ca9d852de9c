"""results.json: the figures of a run, from its commits and its predictions."""

from __future__ import annotations

from typing import Any

from exfm.config.loading import Experiment
from exfm.supervision.store import Store

CONFIG_FILE, RESULTS_FILE, REPORT_FILE = "config.yaml", "results.json", "report.html"


def assemble(experiment: Experiment, store: Store, figures: dict[str, Any], time: dict[str, Any]) -> dict[str, Any]:
    """Puts scores, costs and times together.

    Args:
        figures: what ``evaluate`` returned.
        time: where this process's time went; a resumed run counts its last part only.
    """
    models: dict[str, Any] = {}
    supervision: dict[str, Any] = {}
    skipped = 0
    for arm in experiment.arms:
        counters = [commit.counters for commit in store.log.commits("train", arm.name)]
        seconds = sum(counted["seconds"] for counted in counters)
        examples = sum(counted["examples"] for counted in counters)
        skipped = max(skipped, sum(counted["skipped_rows"] for counted in counters))
        last = counters[-1] if counters else {}
        models[arm.name] = {
            "examples": examples,
            "tasks": figures["models"][arm.name]["tasks"],
            "train_examples_per_second": round(examples / seconds, 1) if seconds else None,
            "parameters": last.get("parameters"),
            "flops_per_example": last.get("flops_per_example"),
        }
        for teacher in arm.teachers:
            parts = [counted["teachers"][teacher] for counted in counters if teacher in counted["teachers"]]
            supervision.setdefault(teacher, {})[arm.name] = _coverage(parts)
    return {
        "experiment": experiment.config.name,
        "seed": experiment.config.seed,
        "models": models,
        "gains": figures["gains"],
        "supervision": supervision,
        "labelling": {teacher: _labelling(store, teacher) for teacher in supervision},
        "data": {"skipped_rows": skipped},
        "time": time,
    }


def _labelling(store: Store, teacher: str) -> dict[str, int]:
    """How many examples a teacher computed supervision for, each once however many students read it."""
    return {"examples": sum(commit.counters["examples"] for commit in store.log.commits("supervise", teacher))}


def _coverage(parts: list[dict[str, int]]) -> dict[str, float | int | None]:
    """How much of a student's traffic a teacher supervised, and how old the supervision was on average."""
    examples = sum(part["examples"] for part in parts)
    hits = sum(part["hits"] for part in parts)
    return {
        "examples": examples,
        "hit_rate": hits / examples if examples else None,
        "age_s": sum(part["age_us"] for part in parts) / hits / 1e6 if hits else None,
    }
