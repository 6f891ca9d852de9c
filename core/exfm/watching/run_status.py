"""Reports the status of a run as plain data: every model, every job, and the problems."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, Final

from exfm.config.run_files import REPORT_FILE, RESULTS_FILE, RUN_FILE
from exfm.errors import RunError
from exfm.interfaces.data_source import Window, utc
from exfm.mappings import map_values
from exfm.storage.commits import Stage
from exfm.storage.job_records import LIVE, JobRecord, read_records
from exfm.watching.model_status import Chain, Standing, TeacherFigures, read_standing
from exfm.watching.problems import Problem, find_problems, job_of
from exfm.watching.watched_models import RunFolder, WatchedModel

FORMAT: Final = 1

_AT_ONCE: Final = 16
"""Requests at once: of a store each takes tens of milliseconds, and a fleet of 300 models a thousand of them."""


class RunWatch:
    """Looks at a run again and again, and reads only what has changed between two looks.

    Args:
        url: the run's folder, any fsspec URL.

    Raises:
        ConfigError: the folder holds no run.
    """

    def __init__(self, url: str) -> None:
        self.folder = RunFolder(url)
        self._pool = ThreadPoolExecutor(_AT_ONCE, "status")

    def close(self) -> None:
        """Ends the threads that read."""
        self._pool.shutdown()

    def look(self, now: datetime | None = None) -> dict[str, Any]:
        """Reads how the run stands.

        Args:
            now: the time of the look; by default the clock's.

        Returns:
            The status; its keys are in docs/run/watching.md.

        Raises:
            ConfigError: the run has gone.
        """
        now = now or datetime.now(UTC)
        config = self.folder.config()
        models: Sequence[WatchedModel] = self.folder.models()
        folders = self.folder.folders()
        records = dict(zip(folders, self._pool.map(read_records, folders.values()), strict=True))
        models, read = self._read_all(models)
        standings = dict(zip((model.name for model in models), (standing for standing, _ in read), strict=True))
        mine = records[self.folder.url]
        stream_until_us = _stream_until(mine, standings.values())
        is_under_way = any(record.state in LIVE and not record.is_dead(now) for record in mine)
        entries: list[dict[str, Any]] = []
        problems: list[Problem] = []
        for model, (_, error) in zip(models, read, strict=True):
            standing = _beside_teachers(model, standings)
            jobs = _jobs(model, mine, records.get(model.trained_in, mine), now)
            if error:
                problems.append(Problem("unreadable", model.name, "", error))
            problems += find_problems(model, standing, jobs, stream_until_us, is_under_way, now)
            entries.append(_entry(model, standing, jobs, stream_until_us, now))
        students: dict[str, list[str]] = {}
        for model in models:
            for teacher in model.teachers:
                students.setdefault(teacher, []).append(model.name)
        for entry in entries:
            entry["students"] = students.get(entry["model"], [])
            entry["problems"] = sorted({problem.kind for problem in problems if problem.model == entry["model"]})
        exists = dict(zip(_FILES, self._pool.map(self.folder.workspace.exists, _FILES), strict=True))
        return {
            "format": FORMAT,
            "run": self.folder.url,
            "name": str(config["name"]),
            "at": now.isoformat(timespec="seconds"),
            "window": str(config["stream"]["window"]),
            "stream_until": utc(stream_until_us) if stream_until_us else None,
            "has_begun": exists[RUN_FILE],
            "has_results": exists[RESULTS_FILE],
            "has_report": exists[REPORT_FILE],
            "problems": list(map(asdict, problems)),
            "models": entries,
            "jobs": [_job(record, now) for record in mine],
        }

    def _read_all(self, models: Sequence[WatchedModel]) -> tuple[Sequence[WatchedModel], list[tuple[Standing, str]]]:
        """Reads how every model stands, and the error where its commits cannot be read."""
        read = list(self._pool.map(_read, models))
        if all(not error for _, error in read):
            return models, read
        # Again, without the memory of manifests that a repair has removed since.
        for model, (_, error) in zip(models, read, strict=True):
            if error:
                self.folder.forget(model)
        models = self.folder.models()
        return models, list(self._pool.map(_read, models))


_FILES: Final = (RUN_FILE, RESULTS_FILE, REPORT_FILE)


def _read(model: WatchedModel) -> tuple[Standing, str]:
    """Reads how a model stands, and the error if its commits cannot be read."""
    try:
        return read_standing(model.trained, model.labelled), ""
    except RunError as error:
        return Standing(), str(error)


def _stream_until(records: Iterable[JobRecord], standings: Iterable[Standing]) -> int:
    """Returns the time for which the stream is known to be complete, by jobs and commits; 0 before any."""
    times = [record.stream_until_us for record in records]
    for standing in standings:
        for chain in (standing.trained, standing.labelled):
            if chain is not None and chain.newest is not None:
                # Commits outlast the records of jobs, which may be lost.
                times.append(chain.newest.read.until_us or chain.newest.window.end_us)
    return max(times, default=0)


def _beside_teachers(model: WatchedModel, standings: Mapping[str, Standing]) -> Standing:
    """Adds to a model's standing how far its teachers are ahead."""
    standing = standings[model.name]
    teachers = dict(standing.teachers)
    window = standing.trained.window
    for name in model.teachers:
        ahead: Chain | None = standings[name].labelled if name in standings else None
        if window is None or ahead is None or ahead.window is None:
            continue
        # By time, because a teacher of another run may count its windows from another beginning.
        behind = max(0, ahead.window.end_us - window.end_us) // (window.end_us - window.start_us)
        teachers[name] = replace(teachers.get(name, TeacherFigures(None, None)), behind_windows=behind)
    return replace(standing, teachers=teachers)


def _jobs(
    model: WatchedModel, records: Sequence[JobRecord], of_trainer: Sequence[JobRecord], now: datetime
) -> dict[Stage, JobRecord | None]:
    """Returns the job that trains a model, in whatever run, and the job that labels with it."""
    trainer = job_of(of_trainer, "train", model.trained[1], now)
    # Without a delay a model labels in the job that trains it.
    if not model.labels_later:
        return {"train": trainer, "supervise": trainer}
    if model.is_frozen:
        return {"train": trainer, "supervise": job_of(records, "supervise", model.name, now) or _any_run(records)}
    return {"train": trainer, "supervise": job_of(of_trainer, "supervise", model.trained[1], now)}


def _any_run(records: Sequence[JobRecord]) -> JobRecord | None:
    """Returns the job `exfm run`, which labels with frozen teachers without training them."""
    return next((record for record in records if record.stage == "run"), None)


def _entry(
    model: WatchedModel,
    standing: Standing,
    jobs: Mapping[Stage, JobRecord | None],
    stream_until_us: int,
    now: datetime,
) -> dict[str, Any]:
    """Describes a model in the status."""
    window = standing.trained.window
    lag_us = None if window is None or not stream_until_us else max(0, stream_until_us - window.end_us)
    trainer, labeller = jobs["train"], jobs["supervise"] if model.labelled is not None else None
    is_live = trainer is not None and trainer.state in LIVE and not trainer.is_dead(now)
    # Of a job of several models the rate is that of the rows that all of them read.
    live_rate = trainer.rows_per_second if trainer is not None and trainer.state == "running" and is_live else None
    return {
        "model": model.name,
        "control": model.control,
        "teachers": list(model.teachers),
        "trained_in": model.trained_in or None,
        "is_frozen": model.is_frozen,
        "window": _window(window),
        "committed_at": None if standing.trained.newest is None else standing.trained.newest.written_at,
        "labelled": None if standing.labelled is None else _window(standing.labelled.window),
        "lag_s": None if lag_us is None else lag_us / 1e6,
        "lag_windows": None if lag_us is None or window is None else lag_us // (window.end_us - window.start_us),
        "rows_per_second": standing.rows_per_second if live_rate is None else live_rate,
        "tasks": map_values(asdict, standing.tasks),
        "compared_with": _window(standing.compared_with),
        "supervision": map_values(asdict, standing.teachers),
        "snapshot": None if standing.snapshot is None else asdict(standing.snapshot),
        "state": _state(trainer, now),
        "job": None if trainer is None else trainer.job,
        "labelling_state": None if model.labelled is None else _state(labeller, now),
        "labelling_job": None if labeller is None else labeller.job,
        "waiting_for": trainer.waiting_for if is_live and trainer is not None and trainer.waiting_for else None,
        "last_error": trainer.error if trainer is not None and trainer.error else None,
    }


def _window(window: Window | None) -> dict[str, Any] | None:
    if window is None:
        return None
    return {"index": window.index, "start": utc(window.start_us), "end": utc(window.end_us)}


def _state(record: JobRecord | None, now: datetime) -> str | None:
    if record is None:
        return None
    return "dead" if record.is_dead(now) else record.state


def _job(record: JobRecord, now: datetime) -> dict[str, Any]:
    """Describes a job in the status."""
    window = Window(**record.window) if record.window else None
    return {
        "job": record.job,
        "stage": record.stage,
        "models": list(record.models),
        "state": _state(record, now),
        "host": record.host,
        "pid": record.pid,
        "started": record.started,
        "beat": record.beat,
        "silent_s": round(record.silent_s(now), 3),
        "window": _window(window),
        "windows": record.windows,
        "rows": record.rows,
        "rows_per_second": record.rows_per_second,
        "moved": record.moved or None,
        "ne": dict(record.ne),
        "waiting_for": record.waiting_for or None,
        "error": record.error or None,
    }
