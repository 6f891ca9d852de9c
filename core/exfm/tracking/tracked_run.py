"""Reads the settings of a run's models, the figures of each committed window, and those of the whole run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from exfm.config.resolved import parse_resolved
from exfm.config.run_files import CONFIG_FILE, CONTROL_SUFFIX, RESULTS_FILE
from exfm.errors import ConfigError
from exfm.evaluation.evaluate import TaskScores
from exfm.evaluation.gains import add_common
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.predictions import TaskRows, task_rows
from exfm.interfaces.data_source import Window
from exfm.mappings import without
from exfm.redaction import without_credentials
from exfm.reporting.formatting import stored_gain_share
from exfm.storage.commits import NONE, Commit
from exfm.supervision.coverage import Coverage
from exfm.supervision.store import Store

# Keys of config.yaml that describe all models together or the installation. As parameters of a single model they
# would be noise, and longer than trackers accept.
_NOT_OF_A_MODEL = ("models", "teachers", "versions", "components", "plugins")


@dataclass(frozen=True)
class TrackedModel:
    """Names a model of a run, with its parameters for a tracker.

    Attributes:
        control: the name of its control, where it has any.
        params: its keys of the experiment file with all defaults, ``key.path: value``, and the keys of the run.
    """

    name: str
    control: str | None
    params: Mapping[str, str]


class TrackedRun:
    """Reads the folder of a run that is complete or under way, without its data or its plugins.

    Args:
        run_dir: the folder, any fsspec URL.

    Attributes:
        url: the folder.
        identity: distinguishes this run from others: the folder's full URL, and a digest of config.yaml.

    Raises:
        ConfigError: there is no run.
    """

    def __init__(self, run_dir: str) -> None:
        self.store = Store(run_dir)
        self.url = without_credentials(run_dir.rstrip("/"))
        if not self.store.workspace.exists(CONFIG_FILE):
            raise ConfigError(f"{run_dir}: no {CONFIG_FILE} here; `exfm run` writes it when a run begins")
        self.config_yaml = self.store.workspace.read(CONFIG_FILE).decode()
        # A relative and an absolute spelling of one folder are the same run. A run that started over in the same
        # folder with another config is not, so the digest is included.
        full = without_credentials(self.store.workspace.fs.unstrip_protocol(self.store.workspace.root))
        self.identity = f"{full}#{xxhash.xxh3_64_hexdigest(self.config_yaml.encode())}"
        config = parse_resolved(self.config_yaml)
        self.name = str(config["name"])
        self.models = list(_models(config))

    @property
    def complete(self) -> bool:
        """Whether results.json exists."""
        return self.store.workspace.exists(RESULTS_FILE)

    def windows(self, model: TrackedModel, after: int) -> Iterator[tuple[Window, dict[str, float]]]:
        """Yields the windows after index ``after`` that model and control have committed, each with its figures.

        For each task: ``TASK/ne``, ``TASK/auc``, ``TASK/bayes_ne`` where the true probabilities are available, and with
        a control ``TASK/ne_gain_percent``. For each teacher: ``supervision/TEACHER/hit_rate`` and ``.../age_s``.
        Besides, the window's ``examples`` and ``train_examples_per_second``. An undefined figure is left out.
        """
        home = self.store.home(model.name)  # a sweep may have trained it in the folder of another point
        windows = self._windows(model.name)
        compared = self._windows(model.control or model.name)
        # A control that sees other traffic may lack windows; it has passed them once it has committed a later window.
        until = max(compared, default=NONE)
        # Predictions that a vacuum has removed have no figures any more.
        removed: set[int] = set()
        for name in (model.name, model.control or model.name):
            removed.update(window.index for window in self.store.let_go(name))
        for index in windows:
            if not after < index <= until or index in removed:
                continue
            commit = home.store.log.load("train", home.model, index)
            values: dict[str, float | None] = {}
            # A window without rows of this model commits no files, and has no figures.
            if commit.files:
                rows_by_task = task_rows(self.store, model.name, commit.window)
                values = _training_figures(commit) | _scores(commit.window, rows_by_task)
                if model.control is not None and index in compared:
                    values |= self._gains(rows_by_task, model.control, commit.window)
            yield commit.window, _defined(values)

    def _windows(self, model: str) -> list[int]:
        """Lists the windows that a model has committed."""
        home = self.store.home(model)
        return home.store.log.windows("train", home.model)

    def summary(self, model: TrackedModel) -> dict[str, float]:
        """Reads the figures of the whole run from results.json, under the keys of ``windows`` after ``run/``."""
        results = self.store.workspace.read_json(RESULTS_FILE)
        figures = results["models"][model.name]
        values = {
            "train_examples_per_second": figures["train_examples_per_second"],
            "flops_per_example": figures["flops_per_example"],
        }
        for kind, count in (figures["parameters"] or {}).items():
            values[f"parameters/{kind}"] = count
        for task, scores in figures["tasks"].items():
            # The windows of a task are logged separately, see ``windows``; the kind of its label is no figure.
            overall = without(scores, "windows", "kind")
            values |= _by_path(overall, task)
        for gain in results["gains"]:
            if gain["model"] == model.name:
                values |= _gain_figures(gain)
        return {f"run/{key}": float(value) for key, value in _defined(values).items()}

    def _gains(self, rows_by_task: Mapping[str, TaskRows], control: str, window: Window) -> dict[str, float | None]:
        """Compares a model's predictions of a window with its control's, on the examples that both predicted."""
        values: dict[str, float | None] = {}
        home = self.store.home(control)
        if not home.store.log.load("train", home.model, window.index).files:
            return values
        for task, control_rows in task_rows(self.store, control, window).items():
            if task in rows_by_task:
                losses = PairedLosses()
                add_common(losses, rows_by_task[task], control_rows)
                values[f"{task}/ne_gain_percent"] = losses.gain
        return values


def _scores(window: Window, rows_by_task: Mapping[str, TaskRows]) -> dict[str, float | None]:
    """Scores a model's predictions of a window."""
    values: dict[str, float | None] = {}
    for task, rows in rows_by_task.items():
        scores = TaskScores()
        scores.add(window, rows, scored=False)
        (entry,) = scores.windows
        for key in ("ne", "auc", "bayes_ne"):
            if key in entry:
                values[f"{task}/{key}"] = entry[key]
    return values


def _defined(values: Mapping[str, float | None]) -> dict[str, float]:
    """Selects the figures that are not None, because trackers have no notion of a missing value."""
    return {key: value for key, value in values.items() if value is not None}


def _gain_figures(gain: Mapping[str, Any]) -> dict[str, float | None]:
    """Names the figures of an entry of ``gains`` in results.json."""
    task = gain["task"]
    low, high = gain["interval95"] or (None, None)
    values = {
        f"{task}/ne_gain_percent": gain["ne_gain_percent"],
        f"{task}/ne_gain_percent_low": low,
        f"{task}/ne_gain_percent_high": high,
    }
    if gain["teacher"] is not None:
        values[f"{task}/gain_share/{gain['teacher']}"] = stored_gain_share(gain)
    return values


def _by_path(figures: Mapping[str, Any], path: str) -> Iterator[tuple[str, float | None]]:
    """Yields each figure with the path of its keys, ``path/key/key``."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _by_path(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def _training_figures(commit: Commit) -> dict[str, float | None]:
    """Reads the counters of a window's training: size, speed, and the coverage by each teacher."""
    examples, seconds = commit.counters["examples"], commit.counters["seconds"]
    values = {"examples": examples, "train_examples_per_second": None}
    if seconds:
        values["train_examples_per_second"] = examples / seconds
    for teacher, counters in commit.counters["teachers"].items():
        coverage = Coverage.from_counters(counters)
        values[f"supervision/{teacher}/hit_rate"] = coverage.hit_rate
        values[f"supervision/{teacher}/age_s"] = coverage.age_s
    return values


def _models(config: Mapping[str, Any]) -> Iterator[TrackedModel]:
    """Yields the models of a resolved config, each followed by the control that exfm adds for ``control: true``."""
    shared = without(config, *_NOT_OF_A_MODEL)
    for name, model in config["models"].items():
        added_control = f"{name}{CONTROL_SUFFIX}"
        control = added_control if model["control"] is True else model["control"] or None
        yield TrackedModel(name, control, dict(_by_key_path({**shared, "model": model})))
        if model["control"] is True:
            # The config has no section for an added control: it is the model's, without everything a teacher offers.
            without_teacher = {**model, "transfer": [], "inputs": (), "control": False}
            yield TrackedModel(added_control, None, dict(_by_key_path({**shared, "model": without_teacher})))


def _by_key_path(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the leaves of nested sections as text, each with its ``key.path``; an empty section is a leaf."""
    for key, value in node.items():
        key_path = f"{path}.{key}".removeprefix(".")
        if isinstance(value, Mapping) and value:
            yield from _by_key_path(value, key_path)
        elif isinstance(value, str):
            yield key_path, value
        else:
            yield key_path, json.dumps(value)
