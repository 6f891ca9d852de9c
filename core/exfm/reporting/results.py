"""results.json: the figures of a run, from its commits and its predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.data.skips import add_counts, sum_counts
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
from exfm.supervision.commits import Commit
from exfm.supervision.coverage import Coverage
from exfm.supervision.late import LateLog, some_of
from exfm.supervision.store import Store

CONFIG_FILE, RESULTS_FILE, REPORT_FILE = "config.yaml", "results.json", "report.html"
CHANGES_FILE, DIAGNOSIS_FILE = "changes.json", "diagnosis.json"


def assemble(experiment: Experiment, store: Store, figures: dict[str, Any], time: dict[str, Any]) -> dict[str, Any]:
    """Puts scores, costs and times together.

    Args:
        figures: what ``evaluate`` returned.
        time: where this process's time went; a resumed run counts its last part only.
    """
    models: dict[str, Any] = {}
    supervision: dict[str, Any] = {}
    skipped_rows = 0
    skipped: dict[str, dict[str, int]] = {}
    late = []
    missed = []
    for arm in experiment.arms:
        commits = store.log.commits("train", arm.name)
        counters = [commit.counters for commit in commits]
        seconds = sum(counted["seconds"] for counted in counters)
        examples = sum(counted["examples"] for counted in counters)
        skipped_rows = max(skipped_rows, sum(counted["skipped_rows"] for counted in counters))
        skipped = max(skipped, _skipped(counters), key=sum_counts)
        last = counters[-1] if counters else {}
        late += _late(store, arm)
        missed += [f"{arm.name}: {_missed_words(commit)}" for commit in commits if commit.counters["missed_windows"]]
        parts = _parts(counters)
        models[arm.name] = {
            "examples": examples,
            "tasks": figures["models"][arm.name]["tasks"],
            "train_examples_per_second": round(examples / seconds, 1) if seconds else None,
            "parameters": last.get("parameters"),
            "flops_per_example": sum(part["flops_per_example"] for part in parts.values()) if parts else None,
            "parts": parts,
            "serving_lookups": [lookup.name for lookup in arm.lookups],
        }
        if arm.config.where and not examples:
            models[arm.name]["note"] = "no row of the stream meets its where"
        for teacher in arm.teachers:
            covered = _coverage(commits, teacher)
            covered["soft_labels"] = _soft_labels(arm, commits, teacher, figures["first_scored_us"])
            supervision.setdefault(teacher, {})[arm.name] = covered
    return {
        "experiment": experiment.config.name,
        "seed": experiment.config.seed,
        "models": models,
        "gains": figures["gains"],
        "comparisons": figures["comparisons"],
        "supervision": supervision,
        "labelling": {teacher: _labelling(store, teacher) for teacher in supervision if teacher in models},
        "data": {
            "skipped_rows": skipped_rows,
            "skipped": skipped,
            "late_rows": _most(late),
            "late": late,
        },
        "notes": [*_late_notes(late), *missed, *_change_notes(store), *_uncompared_notes(figures)],
        "time": time,
    }


def _late(store: Store, arm: Arm) -> list[dict[str, Any]]:
    """Rows that came after their window had been committed, and that the model has therefore not read."""
    return [
        {
            "model": arm.name,
            "window": late.window.index,
            "start": str(late.window),
            "rows": late.count,
            "parts": sorted(late.rows),
        }
        for late in LateLog(store.workspace).all(arm.name)
        if late.rows
    ]


def _most(late: Sequence[Mapping[str, Any]]) -> int:
    """The late rows of the model that has most of them: models of one stream miss the same rows."""
    rows: dict[str, int] = {}
    for entry in late:
        rows[entry["model"]] = rows.get(entry["model"], 0) + entry["rows"]
    return max(rows.values(), default=0)


def _late_notes(late: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    for model in dict.fromkeys(entry["model"] for entry in late):
        entries = [entry for entry in late if entry["model"] == model]
        parts = {part for entry in entries for part in entry["parts"]}
        names = some_of(parts)
        rows = sum(entry["rows"] for entry in entries)
        windows = some_of([entry["start"] for entry in entries])
        notes.append(
            f"{model}: {rows} rows of {len(entries)} committed windows ({windows}) came later and are not read: {names}"
        )
    return notes


def _uncompared_notes(figures: Mapping[str, Any]) -> list[str]:
    """Names the comparisons that have no figures, because the two models predicted no example in common."""
    entries = [(entry["control"], entry) for entry in figures["gains"]]
    entries += [(entry["baseline"], entry) for entry in figures["comparisons"]]
    notes = (
        f"{entry['model']} and {baseline} predicted no example of {entry['task']} in common that is scored: they are "
        "not compared"
        for baseline, entry in entries
        if not entry["examples"]
    )
    return list(dict.fromkeys(notes))


def _missed_words(commit: Commit) -> str:
    windows = ", ".join(map(str, commit.counters["missed_windows"]))
    return f"before window {commit.window}, windows {windows} were left out: their rows had gone from the stream"


def _change_notes(store: Store) -> list[str]:
    """Values that were changed while the run went on."""
    if not store.workspace.exists(CHANGES_FILE):
        return []
    changes = store.workspace.read_json(CHANGES_FILE)
    return [
        f"from {change['at']} on, {change['key']} is {change['now']!r}; it was {change['was']!r}" for change in changes
    ]


def _skipped(counters: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """Rows left out of a model's windows, by column and reason."""
    total: dict[str, dict[str, int]] = {}
    for counted in counters:
        add_counts(total, counted.get("skipped", {}))  # none in windows of exfm before it counted them
    return total


def _parts(counters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Dense parameters and forward FLOPs per example of each part of a model, averaged over its examples."""
    seen = [counted for counted in counters if counted["flops_per_example"]]
    examples = sum(counted["examples"] for counted in seen)
    return {
        part: {
            "dense_parameters": parameters,
            "flops_per_example": sum(c["examples"] * c["flops_per_example"][part] for c in seen) / examples,
        }
        for part, parameters in (seen[-1]["dense_parameters"] if seen else {}).items()
    }


def _labelling(store: Store, teacher: str) -> dict[str, int]:
    """How many examples a teacher computed supervision for, each once however many students read it."""
    return {"examples": sum(commit.counters["examples"] for commit in store.log.commits("supervise", teacher))}


def _coverage(commits: Sequence[Commit], teacher: str) -> dict[str, Any]:
    """How much of a student's traffic a teacher supervised and how old that was: in all, and window by window."""
    windows = {
        commit.window.index: Coverage.of(commit.counters["teachers"][teacher])
        for commit in commits
        if teacher in commit.counters["teachers"]
    }
    total = Coverage()
    for part in windows.values():
        total += part
    return {
        **total.figures(),
        "windows": [{"window": window, **part.figures()} for window, part in windows.items()],
        "age_histogram": total.histogram(),
    }


def _soft_labels(arm: Arm, commits: Sequence[Commit], teacher: str, first_us: int) -> list[dict[str, Any]]:
    """What the soft labels that come from a teacher are worth: an entry for each strategy, kind of label and task."""
    windows: dict[tuple[int, str, str], dict[Window, Moments]] = {}
    for commit in commits:
        for counted in commit.counters.get("soft_labels", ()):  # none in windows of exfm before it counted them
            if arm.config.transfer[counted["transfer"]].config.teacher == teacher:
                key = (counted["transfer"], counted["label"], counted["task"])
                here = Moments(*(counted[field.name] for field in fields(Moments)))
                windows.setdefault(key, {})[commit.window] = here
    entries = []
    for (transfer, label, task), by_window in sorted(windows.items()):
        scored = [here for window, here in by_window.items() if window.start_us >= first_us]
        entries.append(
            {
                "transfer": transfer,
                "label": label,
                "task": task,
                **_worth(sum(scored, Moments())),
                "windows": [{"window": window.index, **_worth(here)} for window, here in by_window.items()],
            }
        )
    return entries


def _worth(moments: Moments) -> dict[str, Any]:
    return {"examples": moments.examples, "calibration": moments.calibration, "ne": moments.ne}
