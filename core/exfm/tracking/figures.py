"""What a tracker is told: each model's settings, the figures of every committed window, and those of the whole run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from exfm.config.checks import CONTROL_SUFFIX
from exfm.config.resolved import parse_resolved
from exfm.errors import ConfigError
from exfm.evaluation.evaluate import TaskScores
from exfm.evaluation.gains import add_common
from exfm.evaluation.intervals import PairedLosses
from exfm.evaluation.predictions import task_rows
from exfm.interfaces.data_source import Window
from exfm.redaction import without_credentials
from exfm.reporting.figures import gain_share
from exfm.reporting.results import CONFIG_FILE, RESULTS_FILE
from exfm.supervision.commits import NONE, Commit
from exfm.supervision.coverage import Coverage
from exfm.supervision.store import Store

_NOT_OF_A_MODEL = ("models", "teachers", "versions", "components", "plugins")


@dataclass(frozen=True)
class TrackedModel:
    """One model of a run.

    Attributes:
        control: the name of its control, where it has one.
        params: its keys of the experiment file with all defaults, ``key.path: value``, and the run's own.
    """

    name: str
    control: str | None
    params: Mapping[str, str]


class TrackedRun:
    """Reads a run's folder, of a run that is done or under way, without its data or its plugins.

    Args:
        run_dir: the folder, any fsspec URL.

    Attributes:
        url: the folder.
        identity: what tells this run from others: the folder's full URL, and a digest of config.yaml.

    Raises:
        ConfigError: there is no run.
    """

    def __init__(self, run_dir: str) -> None:
        self.store = Store(run_dir)
        self.url = without_credentials(run_dir.rstrip("/"))
        if not self.store.workspace.exists(CONFIG_FILE):
            raise ConfigError(f"{run_dir}: no {CONFIG_FILE} here; `exfm run` writes it when a run begins")
        self.config_yaml = self.store.workspace.read(CONFIG_FILE).decode()
        full = without_credentials(self.store.workspace.fs.unstrip_protocol(self.store.workspace.root))
        self.identity = f"{full}#{xxhash.xxh3_64_hexdigest(self.config_yaml.encode())}"
        config = parse_resolved(self.config_yaml)
        self.name = str(config["name"])
        self.models = list(_models(config))

    @property
    def complete(self) -> bool:
        """Whether results.json is there."""
        return self.store.workspace.exists(RESULTS_FILE)

    def windows(self, model: TrackedModel, after: int) -> Iterator[tuple[Window, dict[str, float]]]:
        """The windows later than ``after`` that the model has committed and its control has passed, and their figures.

        For each task: ``TASK/ne``, ``TASK/auc``, ``TASK/bayes_ne`` where the truth is known, and with a control
        ``TASK/ne_gain_percent``. For each teacher: ``supervision/TEACHER/hit_rate`` and ``.../age_s``. Besides, the
        window's ``examples`` and ``train_examples_per_second``. A figure without a meaning is left out.
        """
        log = self.store.log
        windows = log.windows("train", model.name)
        compared = windows if model.control is None else log.windows("train", model.control)
        # A control that sees other traffic may lack windows; it has passed them once it has committed a later window.
        until = max(compared, default=NONE)
        for index in (index for index in windows if after < index <= until):
            commit = log.load("train", model.name, index)
            control = model.control if index in compared else None
            values = _counted(commit) | self._scored(model.name, control, commit.window) if commit.files else {}
            yield commit.window, {key: value for key, value in values.items() if value is not None}

    def summary(self, model: TrackedModel) -> dict[str, float]:
        """The figures of the whole run, from results.json, under the same names after ``run/``."""
        results = self.store.workspace.read_json(RESULTS_FILE)
        figures = results["models"][model.name]
        values = {
            "train_examples_per_second": figures["train_examples_per_second"],
            "flops_per_example": figures["flops_per_example"],
            **{f"parameters/{kind}": count for kind, count in (figures["parameters"] or {}).items()},
        }
        for task, scores in figures["tasks"].items():
            values |= _by_path({key: value for key, value in scores.items() if key != "windows"}, task)
        for gain in (gain for gain in results["gains"] if gain["model"] == model.name):
            task, (low, high) = gain["task"], gain["interval95"] or (None, None)
            values |= {f"{task}/ne_gain_percent": gain["ne_gain_percent"]}
            values |= {f"{task}/ne_gain_percent_low": low, f"{task}/ne_gain_percent_high": high}
            if gain["teacher"] is not None:
                values[f"{task}/gain_share/{gain['teacher']}"] = gain_share(gain)
        return {f"run/{key}": float(value) for key, value in values.items() if value is not None}

    def _scored(self, model: str, control: str | None, window: Window) -> dict[str, float | None]:
        values: dict[str, float | None] = {}
        rows_of_task = task_rows(self.store, model, window)
        for task, rows in rows_of_task.items():
            scores = TaskScores()
            scores.add(window, rows, scored=False)
            (entry,) = scores.windows
            values |= {f"{task}/{key}": entry[key] for key in ("ne", "auc", "bayes_ne") if key in entry}
        if control is not None and self.store.log.load("train", control, window.index).files:
            for task, reference in task_rows(self.store, control, window).items():
                if task in rows_of_task:
                    losses = PairedLosses()
                    add_common(losses, rows_of_task[task], reference)
                    values[f"{task}/ne_gain_percent"] = losses.gain
        return values


def _by_path(figures: Mapping[str, Any], path: str) -> Iterator[tuple[str, float | None]]:
    """Yields each figure with the path of its keys, ``path/key/key``."""
    for key, value in figures.items():
        if isinstance(value, Mapping):
            yield from _by_path(value, f"{path}/{key}")
        else:
            yield f"{path}/{key}", value


def _counted(commit: Commit) -> dict[str, float | None]:
    examples, seconds = commit.counters["examples"], commit.counters["seconds"]
    values = {"examples": examples, "train_examples_per_second": examples / seconds if seconds else None}
    for teacher, counters in commit.counters["teachers"].items():
        coverage = Coverage.of(counters)
        values[f"supervision/{teacher}/hit_rate"] = coverage.hit_rate
        values[f"supervision/{teacher}/age_s"] = coverage.age_s
    return values


def _models(config: Mapping[str, Any]) -> Iterator[TrackedModel]:
    shared = {key: value for key, value in config.items() if key not in _NOT_OF_A_MODEL}
    for name, model in config["models"].items():
        named = model["control"]
        control = f"{name}{CONTROL_SUFFIX}" if named is True else named or None
        yield TrackedModel(name, control, dict(_flat({**shared, "model": model})))
        if named is True:
            untaught = {**model, "transfer": [], "lookups": {}, "control": False}
            yield TrackedModel(f"{name}{CONTROL_SUFFIX}", None, dict(_flat({**shared, "model": untaught})))


def _flat(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        here = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, here)
        else:
            yield here, value if isinstance(value, str) else json.dumps(value)
