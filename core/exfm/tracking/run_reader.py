"""Reads a run that is complete or under way as events: those of each committed window, and those of its end."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from exfm.config.resolved import parse_resolved
from exfm.config.run_files import CONFIG_FILE, RESULTS_FILE
from exfm.errors import ConfigError
from exfm.evaluation.predictions import TaskRows, task_rows
from exfm.interfaces.data_source import Window
from exfm.interfaces.events import (
    SnapshotHeld,
    SnapshotPublished,
    TrackedModel,
    TrackedRun,
    WindowCommitted,
)
from exfm.mappings import by_name, without
from exfm.redaction import without_credentials
from exfm.reporting.formatting import stored_gain_share
from exfm.storage.commits import NONE, Commit
from exfm.supervision.store import Store
from exfm.tracking.run_models import model_sections
from exfm.tracking.window_figures import counted_figures, scored_figures, teacher_figures


class RunReader:
    """Reads the folder of a run without its data or its plugins.

    Args:
        run_dir: the folder, any fsspec URL.
        models: names of the models to read; by default all.

    Attributes:
        run: describes the run.

    Raises:
        ConfigError: there is no run.
    """

    def __init__(self, run_dir: str, models: Collection[str] | None = None) -> None:
        self.store = Store(run_dir)
        workspace = self.store.workspace
        if not workspace.exists(CONFIG_FILE):
            raise ConfigError(f"{run_dir}: no {CONFIG_FILE} here; `exfm run` writes it when a run begins")
        config_yaml = workspace.read(CONFIG_FILE).decode()
        config = parse_resolved(config_yaml)
        self.run = TrackedRun(str(config["name"]), without_credentials(run_dir.rstrip("/")), config_yaml)
        sections = by_name(model_sections(config))
        self._sections = {name: section for name, section in sections.items() if models is None or name in models}
        # A relative and an absolute spelling of a folder are the same run.
        self._full_url = without_credentials(workspace.fs.unstrip_protocol(workspace.root))
        self._models: dict[str, TrackedModel] = {}

    @property
    def complete(self) -> bool:
        """Whether results.json exists."""
        return self.store.workspace.exists(RESULTS_FILE)

    def models(self) -> list[TrackedModel]:
        """Describes the models that have commits; a model has no identity before its first commit."""
        for name, section in self._sections.items():
            if name not in self._models:
                windows = self._newest_first(name, NONE)
                if windows:
                    # A run that started over in the same folder has committed its first window at another time.
                    identity = f"{self._full_url}#{name}#{self._load(name, windows[-1]).written_at}"
                    self._models[name] = TrackedModel(name, identity, section.control, section.params)
        return list(self._models.values())

    def head(self, model: str) -> int:
        """Returns the index of the newest window that a model has committed; ``NONE`` without any."""
        home = self.store.home(model)
        return home.store.log.head("train", home.model)

    def before_newest(self, model: str) -> int:
        """Returns the index of the window that a model has committed before its newest."""
        head = self.head(model)
        return NONE if head == NONE else self._load(model, head).previous

    def windows(self, model: TrackedModel, after: int, *, scored: bool) -> Iterator[WindowCommitted]:
        """Yields the windows after index ``after`` that model and control have committed, in order.

        Args:
            scored: read the predictions besides, for ``auc``, and ``bayes_ne`` where true probabilities are available.
                Windows whose predictions a vacuum has removed are left out then.
        """
        # A control that sees other traffic may lack windows; it has passed them once it has committed a later window.
        until = self.head(model.control or model.name)
        removed = self._removed(model) if scored else set()
        for index in reversed(self._newest_first(model.name, after)):
            if index <= until and index not in removed:
                yield self._window(model, self._load(model.name, index), scored)

    def _removed(self, model: TrackedModel) -> set[int]:
        removed: set[int] = set()
        # Of the control too, because a gain needs the predictions of both.
        for name in (model.name, model.control or model.name):
            removed.update(window.index for window in self.store.let_go(name))
        return removed

    def snapshot(self, model: TrackedModel, window: Window) -> SnapshotPublished | SnapshotHeld | None:
        """Says whether the snapshot after a window is published or held; None of a window without rows."""
        commit = self._load(model.name, window.index)
        if not commit.files:
            return None
        if commit.counters.get("held"):
            return SnapshotHeld(model, window, dict(commit.counters["held"]))
        return SnapshotPublished(model, window)

    def _window(self, model: TrackedModel, commit: Commit, scored: bool) -> WindowCommitted:
        # A window without rows of this model commits no files, and has no figures.
        if not commit.files:
            return WindowCommitted(model, commit.window, commit.written_at, 0)
        control = self._control(model, commit.window)
        tasks = counted_figures(commit, control)
        if scored:
            rows, others = self._rows(model.name, commit.window), None
            if model.control is not None and control is not None and control.files:
                others = self._rows(model.control, commit.window)
            for task, figures in scored_figures(commit.window, rows, others).items():
                tasks[task] = {**tasks.get(task, {}), **figures}
        examples, seconds = commit.counters["examples"], commit.counters["seconds"]
        return WindowCommitted(
            model,
            commit.window,
            commit.written_at,
            examples,
            examples / seconds if seconds else None,
            tasks,
            teacher_figures(commit),
        )

    def _control(self, model: TrackedModel, window: Window) -> Commit | None:
        """Returns the commit of a window of the model's control; None if there is none."""
        if model.control is None:
            return None
        home = self.store.home(model.control)
        if not home.store.log.has("train", home.model, window.index):
            return None
        return home.store.log.load("train", home.model, window.index)

    def _rows(self, model: str, window: Window) -> Mapping[str, TaskRows]:
        return task_rows(self.store, model, window)

    def _load(self, model: str, index: int) -> Commit:
        home = self.store.home(model)  # a sweep may have trained it in the folder of another point
        return home.store.log.load("train", home.model, index)

    def _newest_first(self, model: str, after: int) -> list[int]:
        """Lists the windows after an index that a model has committed, from the newest back."""
        home = self.store.home(model)
        indices: list[int] = []
        # From the newest back, so that a tracker that is up to date costs a single manifest.
        for index in home.store.log.newest_first("train", home.model):
            if index <= after:
                break
            indices.append(index)
        return indices

    def summary(self, model: str) -> dict[str, float]:
        """Reads the figures of the whole run from results.json, under the keys of a window's figures after ``run/``."""
        results = self.store.workspace.read_json(RESULTS_FILE)
        figures = results["models"][model]
        values = {
            "train_examples_per_second": figures["train_examples_per_second"],
            "flops_per_example": figures["flops_per_example"],
        }
        for kind, count in (figures["parameters"] or {}).items():
            values[f"parameters/{kind}"] = count
        for task, scores in figures["tasks"].items():
            # The windows of a task have events, see ``windows``; the kind of its label is no figure.
            overall = without(scores, "windows", "kind")
            values |= _by_path(overall, task)
        for gain in results["gains"]:
            if gain["model"] == model:
                values |= _gain_figures(gain)
        return {f"run/{key}": float(value) for key, value in values.items() if value is not None}

    def summaries(self) -> dict[str, dict[str, float]]:
        """Reads the figures of the whole run by model."""
        return {model.name: self.summary(model.name) for model in self.models()}


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
