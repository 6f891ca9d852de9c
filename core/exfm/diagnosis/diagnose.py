"""Diagnoses every taught model of a finished run: measures, and the cause that they point to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from exfm.config.resolved import parse_resolved
from exfm.diagnosis.causes import decide
from exfm.diagnosis.lesson_figures import Json, learning, measure
from exfm.diagnosis.lessons import Lesson, LessonRows, TeacherRows, lesson_rows
from exfm.diagnosis.settings import teachers_of
from exfm.diagnosis.supervision import ExternalRowsOfTask, StoredTeacher
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
        ConfigError: the files of a teacher from elsewhere are not where they were.
        RunError: a file of the run is missing or corrupt.
    """
    config = parse_resolved(config_yaml)
    lessons, left_out = _lessons(results, config)
    return {
        "experiment": results["experiment"],
        "results": digest(results),
        "students": [_diagnosed(store, lesson, results, config) for lesson in lessons],
        "left_out": [*left_out, _UNSLICED],
    }


def digest(results: Mapping[str, Any]) -> str:
    """Identifies the figures that a diagnosis belongs to: models and gains, not times."""
    text = json.dumps([results["models"], results["gains"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lessons(results: Json, config: Json) -> tuple[list[Lesson], list[str]]:
    """Lists the lessons of the models that are measured against a control, and which of these have none and why."""
    compared = dict.fromkeys((gain["model"], gain["control"], gain["task"]) for gain in results["gains"])
    lessons, left_out = [], []
    for model, control, task in compared:
        taught = dict(_taught(model, task, results, config))
        first = _first_window(results["models"][model]["tasks"][task])
        lessons += [Lesson(model, control, task, teacher, named, first) for teacher, named in taught.items()]
        if not taught:
            left_out.append(f"{model}, {task}: no transfer teaches it soft labels of this task")
    return lessons, left_out


def _taught(model: str, task: str, results: Json, config: Json) -> Iterator[tuple[str, str]]:
    """Yields the teachers that teach a student a task, and their names for the task."""
    elsewhere = config.get("teachers") or {}
    for transfer in config["models"].get(model, {}).get("transfer") or ():
        named = transfer["tasks"].get(task) if transfer.get("tasks") else task
        for teacher in teachers_of(transfer):
            tasks = elsewhere[teacher]["predictions"] if teacher in elsewhere else results["models"][teacher]["tasks"]
            if named in tasks:
                yield teacher, named


def _first_window(figures: Json) -> int:
    """Finds where the overall figures begin: they are of the last windows that add up to their examples."""
    left = figures["examples"]
    for window in reversed(figures["windows"]):
        left -= window["examples"]
        if left <= 0:
            return int(window["window"])
    return 0


def _diagnosed(store: Store, lesson: Lesson, results: Json, config: Json) -> Json:
    elsewhere = config.get("teachers") or {}
    rows: TeacherRows
    if lesson.teacher in elsewhere:
        config_name = f"{store.workspace.url.rstrip('/')}/config.yaml"
        rows = ExternalRowsOfTask(lesson.teacher, elsewhere[lesson.teacher], lesson.teacher_task, config_name)
    else:
        rows = StoredTeacher(store, lesson.teacher, lesson.teacher_task)
    of_teacher = results["models"].get(lesson.teacher, {"tasks": {}})
    predicts = lesson.teacher_task in of_teacher["tasks"]

    def read(scored: bool) -> Iterator[LessonRows]:
        return lesson_rows(store, lesson, rows, predicts, scored)

    measured = measure(read, config.get("evaluation", {}).get("replicates", 2_000), results["seed"])
    control = results["models"][lesson.control]["tasks"][lesson.task]
    entry = {
        "model": lesson.model,
        "control": lesson.control,
        "task": lesson.task,
        "teacher": lesson.teacher,
        "teacher_task": lesson.teacher_task,
        "elsewhere": lesson.teacher in elsewhere,
        **measured,
        "learning": learning(control["windows"], lesson.first_window),
        "capacity": _capacity(results["models"][lesson.model], of_teacher, config["models"][lesson.model]),
        "gain_share": _share(measured),
    }
    return {**entry, "verdict": decide(entry, config)}


def _share(measured: Json) -> float | None:
    """Divides the student's gain by the recalibrated teacher's; None where the teacher is not clearly better."""
    gain, headroom = measured["gain"], measured["headroom"]["recalibrated"]
    if gain["percent"] is None or headroom["interval95"] is None or headroom["interval95"][0] <= 0:
        return None
    return float(gain["percent"] / headroom["percent"])


def _capacity(student: Json, teacher: Json, config: Json) -> Json:
    """Describes the size of the student, beside its teacher's where that is a model of the run."""
    size, teacher_size = student.get("parameters") or {}, teacher.get("parameters") or {}
    rows = size["sparse"] / config["embedding_dim"] if size.get("sparse") else None
    return {
        "dense_parameters": size.get("dense"),
        "sparse_parameters": size.get("sparse"),
        "flops_per_example": student.get("flops_per_example"),
        "teacher_dense_parameters": teacher_size.get("dense"),
        "teacher_sparse_parameters": teacher_size.get("sparse"),
        "teacher_flops_per_example": teacher.get("flops_per_example"),
        "embedding_dim": config["embedding_dim"],
        "examples_per_table_row": student["examples"] / rows if rows else None,
    }
