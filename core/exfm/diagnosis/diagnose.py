"""Diagnoses every taught model of a finished run: its measures, and the cause that they point to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from exfm.config.resolved import parse_resolved
from exfm.config.run_files import record_file
from exfm.diagnosis.causes import decide
from exfm.diagnosis.served_rows import ExternalRowsOfTask, StoredTeacher
from exfm.diagnosis.settings_to_try import teachers_of
from exfm.diagnosis.taught_measures import Json, learning, measure
from exfm.diagnosis.taught_rows import TaughtRows, TaughtTask, TeacherRows, taught_rows
from exfm.errors import ConfigError
from exfm.storage.marks import first_kept_rows
from exfm.supervision.store import Store

_UNSLICED: Final = "no slices by surface or domain: predictions keep none"


def diagnose(store: Store, results: Json, config_yaml: str) -> Json:
    """Diagnoses a run.

    Args:
        store: the run's folder.
        results: its results.json.
        config_yaml: its config.yaml.

    Returns:
        The content of diagnosis.json.

    Raises:
        ConfigError: the files of a teacher from elsewhere have moved.
        RunError: a file of the run is missing or corrupt.
    """
    config = _with_lent_models(store, parse_resolved(config_yaml))
    taught_tasks, left_out = _taught_tasks(results, config)
    taught_tasks = [_of_stored_windows(store, taught, config) for taught in taught_tasks]
    left_out += _removed(store, taught_tasks)
    entries = [_measure_task(store, taught, results, config) for taught in taught_tasks]
    students: list[Json] = []
    for entry in entries:
        compared = {**entry, **_with_and_without_lookup(entry, entries, config)}
        students.append({**compared, "verdict": decide(compared, config)})
    return {
        "experiment": results["experiment"],
        "results": digest(results),
        "students": students,
        "left_out": [*left_out, _UNSLICED],
    }


def _of_stored_windows(store: Store, taught: TaughtTask, config: Json) -> TaughtTask:
    """Leaves the windows out whose supervision a vacuum has removed: their rows would count as misses."""
    if taught.teacher in _external(config):
        return taught
    home = store.home(taught.teacher)
    return replace(taught, first_served=first_kept_rows(home.store.workspace, "supervision", home.model))


def _removed(store: Store, taught_tasks: Sequence[TaughtTask]) -> list[str]:
    """Writes a sentence for each model of which a vacuum has removed rows that the measures would use."""
    sentences: dict[str, None] = {}
    for taught in taught_tasks:
        if taught.first_served:
            sentence = f"{taught.teacher}: its supervision before window {taught.first_served} was removed"
            sentences[f"{sentence} (`exfm vacuum`): measures leave these windows out"] = None
        for name in (taught.model, taught.control):
            gone = store.let_go(name)
            if gone:
                sentence = f"{name}: its predictions up to window {gone[-1].index} were removed"
                sentences[f"{sentence} (`exfm vacuum`): measures leave these windows out"] = None
    return list(sentences)


def digest(results: Mapping[str, Any]) -> str:
    """Identifies the figures that a diagnosis belongs to."""
    # Models and gains alone: times change with every resumed run, and no measure depends on them.
    text = json.dumps([results["models"], results["gains"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _taught_tasks(results: Json, config: Json) -> tuple[list[TaughtTask], list[str]]:
    """Lists the taught tasks of the models with a control, and a sentence for each task without a teacher."""
    # results.json has a gain for each teacher, next to each other; here a task counts once.
    compared = dict.fromkeys((gain["model"], gain["control"], gain["task"]) for gain in results["gains"])
    taught_tasks, left_out = [], []
    for model, control, task in compared:
        kind = results["models"][model]["tasks"][task].get("kind", "binary")
        if kind != "binary":
            left_out.append(f"{model}, {task}: it has a {kind} label, and the measures are those of probabilities")
            continue
        teacher_tasks = dict(_teacher_tasks(model, task, results, config))
        first_window = _first_window(results["models"][model]["tasks"][task])
        for teacher, teacher_task in teacher_tasks.items():
            taught_tasks.append(TaughtTask(model, control, task, teacher, teacher_task, first_window))
        if not teacher_tasks:
            left_out.append(f"{model}, {task}: no transfer teaches it soft labels of this task")
    return taught_tasks, left_out


def _with_lent_models(store: Store, config: Json) -> Json:
    """Adds the sections of teachers that other runs train, as the records of those runs have them."""
    models = dict(config["models"])
    for name, section in (config.get("teachers") or {}).items():
        if "run" in section:
            home = store.lent(name)
            try:
                record = home.store.workspace.read_json(record_file(home.model))
            except FileNotFoundError:
                raise ConfigError(
                    f"teachers.{name}.run: {home.store.workspace.url} holds no model {home.model!r} any more; put the "
                    "folder back, or run the experiment with its new place"
                ) from None
            models[name] = {**record["identity"]["model"], "tasks": record["tasks"]}
    return {**config, "models": models}


def _external(config: Json) -> Json:
    """Returns the sections of the teachers whose predictions are in files; those of other runs are models."""
    teachers = config.get("teachers") or {}
    return {name: section for name, section in teachers.items() if "predictions" in section}


def _teacher_tasks(model: str, task: str, results: Json, config: Json) -> Iterator[tuple[str, str]]:
    """Yields the teachers that teach a student a task, and their names for the task."""
    elsewhere = _external(config)
    for transfer in config["models"].get(model, {}).get("transfer") or ():
        # Without ``tasks`` a transfer teaches the tasks that teacher and student call alike.
        teacher_task = task
        if transfer.get("tasks"):
            teacher_task = transfer["tasks"].get(task)
        for teacher in teachers_of(transfer):
            if teacher in elsewhere:
                tasks = elsewhere[teacher]["predictions"]
            elif teacher in results["models"]:
                tasks = results["models"][teacher]["tasks"]
            else:  # frozen at a snapshot, which has no figures of its own
                tasks = config["models"][teacher]["tasks"]
            if teacher_task in tasks:
                yield teacher, teacher_task


def _first_window(figures: Json) -> int:
    """Finds the first window of the overall figures: they cover the last windows that add up to their examples."""
    # Backwards, because the windows that are left out are at the beginning.
    left = figures["examples"]
    for window in reversed(figures["windows"]):
        left -= window["examples"]
        if left <= 0:
            return int(window["window"])
    return 0


def _with_and_without_lookup(entry: Json, entries: Sequence[Json], config: Json) -> Json:
    """Compares the students of a control, task and teacher that read the teacher's output when they serve, and others.

    Returns:
        ``lookups``, those that do; none for a student that reads any itself. ``best_without_lookup``, the largest gain
        share of the others.
    """
    lookups: list[Json] = []
    shares: list[float] = []
    for other in entries:
        if any(other[key] != entry[key] for key in ("control", "task", "teacher")):
            continue
        inputs, share = _inputs(other["model"], entry["teacher"], config), other["gain_share"]
        if inputs:
            lookups.append({"model": other["model"], "inputs": inputs, "gain_share": share})
        elif share is not None:
            shares.append(share)
    if _inputs(entry["model"], entry["teacher"], config):
        lookups = []
    return {"lookups": lookups, "best_without_lookup": max(shares, default=None)}


def _inputs(model: str, teacher: str, config: Json) -> list[str]:
    """Names the inputs of a model that read a teacher's output."""
    inputs = config["models"].get(model, {}).get("inputs") or ()
    return [section["name"] for section in inputs if section["teacher"] == teacher]


def _measure_task(store: Store, taught: TaughtTask, results: Json, config: Json) -> Json:
    """Measures a taught task: an entry of ``students`` in diagnosis.json, without lookups and verdict."""
    elsewhere = _external(config)
    served: TeacherRows
    if taught.teacher in elsewhere:
        config_name = f"{store.workspace.url.rstrip('/')}/config.yaml"
        served = ExternalRowsOfTask(taught.teacher, elsewhere[taught.teacher], taught.teacher_task, config_name)
    else:
        served = StoredTeacher(store, taught.teacher, taught.teacher_task)
    # A teacher from elsewhere is no model of the run: it has no predictions and no size here.
    teacher_results = results["models"].get(taught.teacher, {"tasks": {}})
    teacher_predicts = taught.teacher_task in teacher_results["tasks"]

    def read(scored: bool) -> Iterator[TaughtRows]:
        return taught_rows(store, taught, served, teacher_predicts, scored)

    measured = measure(read, config.get("evaluation", {}).get("replicates", 2_000), results["seed"])
    control = results["models"][taught.control]["tasks"][taught.task]
    return {
        "model": taught.model,
        "control": taught.control,
        "task": taught.task,
        "teacher": taught.teacher,
        "teacher_task": taught.teacher_task,
        "elsewhere": taught.teacher in elsewhere,
        **measured,
        "learning": learning(control["windows"], taught.first_window),
        "capacity": _capacity(results["models"][taught.model], teacher_results, config["models"][taught.model]),
        "gain_share": _gain_share(measured),
    }


def _gain_share(measured: Json) -> float | None:
    """Divides the student's gain by the recalibrated teacher's; None where the teacher is not clearly better."""
    gain, headroom = measured["gain"], measured["headroom"]["recalibrated"]
    if gain["percent"] is None or headroom["interval95"] is None or headroom["interval95"][0] <= 0:
        return None
    return float(gain["percent"] / headroom["percent"])


def _capacity(student: Json, teacher: Json, config: Json) -> Json:
    """Describes the size of the student, and of a teacher that is a model of the run."""
    size, teacher_size = student.get("parameters") or {}, teacher.get("parameters") or {}
    examples_per_row = None
    if size.get("sparse"):
        table_rows = size["sparse"] / config["embedding_dim"]
        examples_per_row = student["examples"] / table_rows
    return {
        "dense_parameters": size.get("dense"),
        "sparse_parameters": size.get("sparse"),
        "flops_per_example": student.get("flops_per_example"),
        "teacher_dense_parameters": teacher_size.get("dense"),
        "teacher_sparse_parameters": teacher_size.get("sparse"),
        "teacher_flops_per_example": teacher.get("flops_per_example"),
        "embedding_dim": config["embedding_dim"],
        "examples_per_table_row": examples_per_row,
    }
