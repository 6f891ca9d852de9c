"""Assembles results.json: the figures of a run, from its commits and its predictions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.run_files import CHANGES_FILE
from exfm.data.skips import add_counts, sum_counts
from exfm.evaluation.label_kinds import from_counters
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
from exfm.mappings import values_at
from exfm.reporting.held_windows import held_notes, held_windows
from exfm.storage.commits import Commit
from exfm.storage.late_log import LateLog, first_names
from exfm.supervision.coverage import Coverage
from exfm.supervision.store import Store

Counters = Mapping[str, Any]
"""The counters of a window's commit."""


def assemble(experiment: Experiment, store: Store, figures: dict[str, Any], time: dict[str, Any]) -> dict[str, Any]:
    """Assembles scores, costs and times.

    Args:
        figures: the figures that ``evaluate`` returned.
        time: seconds that this process spent, by purpose; those of earlier processes of a resumed run are not known.
    """
    models: dict[str, Any] = {}
    supervision: dict[str, Any] = {}
    skipped_rows = 0
    skipped: dict[str, dict[str, int]] = {}
    late: list[dict[str, Any]] = []
    missed: list[str] = []
    held: list[dict[str, Any]] = []
    held_back: list[str] = []
    most_windows = 0
    taught_by = {teacher for arm in experiment.arms for teacher in arm.teachers}
    for arm in (*experiment.arms, *experiment.lent_arms):
        home = store.home(arm.name)
        commits = home.store.log.commits("train", home.model)
        counters = [commit.counters for commit in commits]
        most_windows = max(most_windows, len(commits))
        # All models read the same stream, so their skipped rows overlap: the model with the most has all of them.
        skipped_rows = max(skipped_rows, _sum(counters, "skipped_rows"))
        skipped = max(skipped, _skipped(counters), key=sum_counts)
        late += _late(store, arm)
        missed += [f"{arm.name}: {_missed_words(commit)}" for commit in commits if commit.counters["missed_windows"]]
        held += held_windows(arm, commits)
        held_back += held_notes(arm, commits, taught_by)
        models[arm.name] = model_entry(arm, counters, figures["models"][arm.name]["tasks"])
        if counters and "init_from" in counters[0]:
            models[arm.name]["init_from"] = counters[0]["init_from"]
        if arm.name in store.borrowed:
            models[arm.name]["trained_in"] = home.store.workspace.url
        for teacher in arm.teachers:
            covered = coverage_entry(commits, teacher)
            covered["soft_labels"] = _soft_labels(arm, commits, teacher, figures["first_scored_us"])
            supervision.setdefault(teacher, {})[arm.name] = covered
    return {
        "experiment": experiment.config.name,
        "seed": experiment.config.seed,
        "models": models,
        "gains": figures["gains"],
        "comparisons": figures["comparisons"],
        "supervision": supervision,
        # A teacher whose predictions are in files is no model, and labels nothing here.
        "labelling": {
            teacher: _labelling(store, teacher)
            for teacher in supervision
            if teacher not in experiment.config.external_teachers
        },
        "held": held,
        "data": {
            "skipped_rows": skipped_rows,
            "skipped": skipped,
            "late_rows": _most(late),
            "late": late,
        },
        "notes": [
            *_waiting_notes(time),
            *_stopped_notes(time, most_windows),
            *_unbegun_notes(experiment, store, time),
            *_initial_notes(models),
            *_late_notes(late),
            *_unlabelled_notes(models),
            *_unmatched_notes(supervision, experiment.config.external_teachers),
            *missed,
            *held_back,
            *_frozen_notes(store, taught_by),
            *_removal_notes(experiment, store),
            *_epoch_notes(experiment, store),
            *_change_notes(store),
            *_uncompared_notes(figures),
        ],
        "time": time,
    }


def _unbegun_notes(experiment: Experiment, store: Store, time: Mapping[str, Any]) -> list[str]:
    """Names the models whose start the stream has not reached, of a run that has come to the end of its stream."""
    notes: list[str] = []
    if time.get("waiting_for") or time.get("stopped"):
        return notes
    for arm in experiment.arms:
        starts_later = arm.config.start is not None or arm.config.init_from is not None
        if starts_later and not store.windows(arm.name) and not store.let_go(arm.name):
            start = f"models.{arm.base}.start"
            if arm.config.start is None:
                start += " is after the newest snapshot of the model that it starts from"
            else:
                start += f" is {arm.config.start:%Y-%m-%dT%H:%M}Z"
            notes.append(f"{arm.name}: it has no window yet, because the stream has no rows from its start on: {start}")
    return notes


def _initial_notes(models: Mapping[str, Any]) -> list[str]:
    """Writes a sentence for each model that started from another."""
    notes = []
    for name, model in models.items():
        if "init_from" in model:
            taken = model["init_from"]
            counts = [f"{len(taken[kind])} {kind}" for kind in ("loaded", "grown", "new", "left")]
            changed = first_names([*taken["grown"], *taken["new"], *taken["left"]])
            notes.append(f"{name}: started from {taken['origin']}; tensors: {', '.join(counts)} ({changed})")
    return notes


def _unlabelled_notes(models: Mapping[str, Any]) -> list[str]:
    """Names the tasks of which labels are not known, and which examples their figures therefore leave out."""
    notes = []
    for name, model in models.items():
        for task, scores in model["tasks"].items():
            if scores["unlabelled"]:
                unlabelled = scores["unlabelled"]
                total = scores["examples"] + unlabelled
                notes.append(
                    f"{name}: {unlabelled:,} of {total:,} examples have no label of {task} (null), and are in none of "
                    "its figures"
                )
    return notes


def _unmatched_notes(supervision: Mapping[str, Any], external: Collection[str]) -> list[str]:
    """Names the teachers from elsewhere that have predicted no example of a student."""
    notes = []
    for teacher in external:
        for student, covered in supervision.get(teacher, {}).items():
            if covered["examples"] and not covered["hit_rate"]:
                notes.append(
                    f"{student}: {teacher} has no prediction of any of its {covered['examples']:,} examples; check "
                    f"that teachers.{teacher}.example_id holds the ids of the stream, in the same type"
                )
    return notes


def _waiting_notes(time: Mapping[str, Any]) -> list[str]:
    """Says why a run has ended before its stream, which only a teacher of another run can cause."""
    if not time.get("waiting_for"):
        return []
    return [f"the run has ended before its stream: it waits for {time['waiting_for']}; call it again to go on"]


def _stopped_notes(time: Mapping[str, Any], windows: int) -> list[str]:
    """Says that a run was limited to its first windows."""
    if not time.get("stopped"):
        return []
    unit = "window" if windows == 1 else "windows"
    return [f"the run was stopped after {windows} {unit}, before the end of its stream; call it again to go on"]


def _sum(counters: Sequence[Counters], key: str) -> Any:
    return sum(counted[key] for counted in counters)


def model_entry(arm: Arm, counters: Sequence[Counters], tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Describes a model in results.json: its scores and its costs."""
    seconds, examples = _sum(counters, "seconds"), _sum(counters, "examples")
    # Tables may grow, so the size is that of the last window.
    last = counters[-1] if counters else {}
    modules = _modules(counters)
    flops = None
    if modules:
        flops = sum(values_at(modules.values(), "flops_per_example"))
    model = {
        "examples": examples,
        "tasks": tasks,
        "train_examples_per_second": round(examples / seconds, 1) if seconds else None,
        "parameters": last.get("parameters"),
        "flops_per_example": flops,
        "parts": modules,
        "serving_lookups": arm.lookups,
    }
    if not counters:
        model["note"] = "it has not begun: the stream has no window for it yet"
    elif arm.config.where and not examples:
        model["note"] = "no row of the stream meets its where"
    return model


def _late(store: Store, arm: Arm) -> list[dict[str, Any]]:
    """Lists the rows that arrived after their window was committed, and that the model has therefore not read."""
    entries = []
    home = store.home(arm.name)
    for late in LateLog(home.store.workspace).all(home.model):
        if late.rows:
            entry = {
                "model": arm.name,
                "window": late.window.index,
                "start": str(late.window),
                "rows": late.count,
                "parts": sorted(late.rows),
            }
            entries.append(entry)
    return entries


def _most(late: Sequence[Mapping[str, Any]]) -> int:
    """Counts the late rows of the model with the most, because models of a stream miss the same rows."""
    rows: dict[str, int] = {}
    for entry in late:
        rows[entry["model"]] = rows.get(entry["model"], 0) + entry["rows"]
    return max(rows.values(), default=0)


def _late_notes(late: Sequence[Mapping[str, Any]]) -> list[str]:
    """Writes a sentence for each model with late rows."""
    entries_of_model: dict[str, list[Mapping[str, Any]]] = {}
    for entry in late:
        entries_of_model.setdefault(entry["model"], []).append(entry)
    notes = []
    for model, entries in entries_of_model.items():
        files: set[str] = set()
        for entry in entries:
            files |= set(entry["parts"])
        names = first_names(files)
        rows = _sum(entries, "rows")
        windows = first_names(values_at(entries, "start"))
        notes.append(
            f"{model}: {rows} rows of {len(entries)} committed windows ({windows}) came later and are not read: {names}"
        )
    return notes


def _frozen_notes(store: Store, teachers: Collection[str]) -> list[str]:
    """Writes a sentence for each frozen teacher: its snapshot, and the windows that it may not label."""
    notes = []
    for name in sorted(store.frozen.keys() & teachers):
        frozen, lent = store.frozen[name], store.lent(name)
        note = f"{name}: frozen at snapshot {frozen.version} of {lent.model} in {lent.store.workspace.url}"
        if frozen.at != str(frozen.version):
            note += f", which was {frozen.at} when the run began"
        masked: list[str] = []
        for commit in store.log.commits("supervise", frozen.stored_as):
            if commit.counters["masked"]:
                masked.append(str(commit.window))
        if masked:
            note += f"; windows {masked[0]} to {masked[-1]} begin before it may label them, and have no supervision"
        notes.append(note)
    return notes


def _removal_notes(experiment: Experiment, store: Store) -> list[str]:
    """Writes a sentence for each model of which a vacuum has removed predictions."""
    notes = []
    for arm in (*experiment.arms, *experiment.lent_arms):
        gone = store.let_go(arm.name)
        if gone:
            notes.append(
                f"{arm.name}: its predictions of windows {gone[0].index} to {gone[-1].index} ({gone[0]} to {gone[-1]}) "
                "were removed by `exfm vacuum`; they have no figures, and the overall figures of all models leave them "
                "out"
            )
    return notes


def _epoch_notes(experiment: Experiment, store: Store) -> list[str]:
    """Writes a sentence for each model that trains on its first windows several times."""
    notes = []
    for arm in experiment.arms:
        epochs = arm.config.epochs
        windows = [*store.let_go(arm.name), *store.windows(arm.name)]
        if epochs is None or not windows:
            continue
        first = sum(window.end_us <= epochs.until_us for window in windows)
        note = f"{arm.name}: the first {first} windows are trained on {epochs.count} times, and figures leave them out"
        if windows[-1].end_us <= epochs.until_us:
            note += "; all but the first time comes with the first window that ends after models."
            note += f"{arm.base}.epochs.until, and there is none yet"
        notes.append(note)
    return notes


def _uncompared_notes(figures: Mapping[str, Any]) -> list[str]:
    """Writes a sentence for each comparison without figures: the two models predicted no example in common."""
    entries = [(entry["control"], entry) for entry in figures["gains"]]
    entries += [(entry["baseline"], entry) for entry in figures["comparisons"]]
    # A dictionary, because a model with several teachers has an entry for each, and its note must appear once.
    notes: dict[str, None] = {}
    for baseline, entry in entries:
        if not entry["examples"]:
            note = (
                f"{entry['model']} and {baseline} predicted no example of {entry['task']} in common that is scored: "
                "they are not compared"
            )
            notes[note] = None
    return list(notes)


def _missed_words(commit: Commit) -> str:
    windows = ", ".join(map(str, commit.counters["missed_windows"]))
    return f"before window {commit.window}, windows {windows} were left out: their rows had gone from the stream"


def _change_notes(store: Store) -> list[str]:
    """Writes a sentence for each key of the experiment file that changed during the run."""
    if not store.workspace.exists(CHANGES_FILE):
        return []
    changes = store.workspace.read_json(CHANGES_FILE)
    return [
        f"from {change['at']} on, {change['key']} is {change['now']!r}; it was {change['was']!r}" for change in changes
    ]


def _skipped(counters: Sequence[Counters]) -> dict[str, dict[str, int]]:
    """Counts the rows that a model's windows left out, by column and reason."""
    total: dict[str, dict[str, int]] = {}
    for counted in counters:
        add_counts(total, counted.get("skipped", {}))  # none in windows of exfm before it counted them
    return total


def _modules(counters: Sequence[Counters]) -> dict[str, Any]:
    """Averages forward FLOPs per example of each module over a model's examples, beside its dense parameters."""
    # A window without examples ran no forward pass, and has counted no FLOPs.
    counted_flops = [counted for counted in counters if counted["flops_per_example"]]
    if not counted_flops:
        return {}
    examples = _sum(counted_flops, "examples")
    modules: dict[str, Any] = {}
    for name, parameters in counted_flops[-1]["dense_parameters"].items():
        # Sequences differ in length from window to window, and so do FLOPs.
        flops = sum(counted["examples"] * counted["flops_per_example"][name] for counted in counted_flops)
        modules[name] = {"dense_parameters": parameters, "flops_per_example": flops / examples}
    return modules


def _labelling(store: Store, teacher: str) -> dict[str, int]:
    """Counts the examples that a teacher computed supervision for, each once for all its students."""
    home = store.home(teacher)
    counters = [commit.counters for commit in home.store.log.commits("supervise", home.model)]
    return {"examples": _sum(counters, "examples")}


def coverage_entry(commits: Sequence[Commit], teacher: str) -> dict[str, Any]:
    """Describes the supervised share of a student's traffic and the age of its supervision: overall and by window."""
    total = Coverage()
    windows = []
    for commit in commits:
        if teacher in commit.counters["teachers"]:
            coverage = Coverage.from_counters(commit.counters["teachers"][teacher])
            total += coverage
            windows.append({"window": commit.window.index, **coverage.figures()})
    return {**total.figures(), "windows": windows, "age_histogram": total.histogram()}


def _soft_labels(arm: Arm, commits: Sequence[Commit], teacher: str, first_us: int) -> list[dict[str, Any]]:
    """Scores the soft labels that come from a teacher: an entry for each strategy, kind of label and task."""
    windows: dict[tuple[int, str, str], dict[Window, Moments]] = {}
    for commit in commits:
        for counted in commit.counters.get("soft_labels", ()):  # none in windows of exfm before it counted them
            if arm.config.transfer[counted["transfer"]].config.teacher == teacher:
                key = (counted["transfer"], counted["label"], counted["task"])
                windows.setdefault(key, {})[commit.window] = from_counters(counted)
    entries = []
    for (transfer, label, task), by_window in sorted(windows.items()):
        total = Moments()
        figures = []
        for window, moments in by_window.items():
            figures.append({"window": window.index, **_score(moments)})
            # As in the overall figures of the models, windows at the stream's beginning do not count.
            if window.start_us >= first_us:
                total += moments
        entries.append({"transfer": transfer, "label": label, "task": task, **_score(total), "windows": figures})
    return entries


def _score(moments: Moments) -> dict[str, Any]:
    return {"examples": round(moments.examples), "calibration": moments.calibration, "ne": moments.ne}
