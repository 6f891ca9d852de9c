"""Tracker `mlflow`: an MLflow run for each model, in the MLflow experiment with the name of the exfm experiment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

import exfm
from exfm.events import Outcome, RunEnded, SnapshotHeld, SnapshotPublished, TrackedModel, TrackedRun, WindowCommitted
from exfm.mlflow_client import open_experiment

# Tags by which a later start recognises the MLflow runs of an earlier start.
_RUN, _MODEL = "exfm.run", "exfm.model"
_HELD, _PUBLISHED = "exfm.held", "exfm.published"
# Limits of MLflow's log_batch call: parameters in a batch, and characters of a value.
_MOST_PARAMS, _LONGEST_PARAM = 100, 6000
_STATUS: dict[Outcome, str] = {"complete": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
"""MLflow's status of a run; one whose job has ended for now stays RUNNING."""


class MLflowTracker(exfm.Tracker):
    """Logs to MLflow: a folder, a server, or a database where all of MLflow is installed; needs ``exfm[mlflow]``.

    Steps are windows, and times those of the stream. Tags hold the newest published and the newest held snapshot. A job
    that starts again goes on in the same MLflow runs, after the newest window that they have.

    Example::

        trackers: [{name: mlflow, uri: "http://localhost:5000"}]
    """

    name: ClassVar[str] = "mlflow"
    config: Config

    class Config(exfm.ComponentConfig):
        """Fields of `mlflow`."""

        uri: str = Field("", description="The tracking URI; MLFLOW_TRACKING_URI by default.")

    def __init__(self, config: Config, run: TrackedRun) -> None:
        super().__init__(config, run)
        try:
            import mlflow
        except ImportError as error:
            raise ValueError(f"MLflow cannot be imported ({error}): pip install 'exfm[mlflow]'") from error
        self._uri = config.uri or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self._uri:
            raise ValueError("mlflow: say where MLflow is with uri, or set MLFLOW_TRACKING_URI")
        self._entities = mlflow.entities
        self._opened: tuple[Any, str] | None = None
        self._ids: dict[str, str] = {}

    @property
    def _client(self) -> Any:
        """The client, connected when it is first used."""
        if self._opened is None:
            self._opened = open_experiment(self._uri, self.run.name)
        return self._opened[0]

    def last_window(self, model: TrackedModel) -> int:
        """Returns the newest step that MLflow has."""
        # Every window logs its number of examples, so that key alone has all steps.
        history = self._client.get_metric_history(self._run_id(model), "examples")
        return max((metric.step for metric in history), default=-1)

    def window_committed(self, event: WindowCommitted) -> None:
        """Logs the figures of a window, at its start in the stream's time."""
        self._log(event.model, event.figures(), event.window.index, event.window.start_us // 1000)

    def snapshot_published(self, event: SnapshotPublished) -> None:
        """Tags the run with the newest published snapshot."""
        self._client.set_tag(self._run_id(event.model), _PUBLISHED, str(event.window.index))

    def snapshot_held(self, event: SnapshotHeld) -> None:
        """Tags the run with the newest held snapshot and the reasons."""
        text = "; ".join(f"{task}: {reason}" for task, reason in event.reasons.items())
        self._client.set_tag(self._run_id(event.model), _HELD, f"{event.window.index}: {text}"[:_LONGEST_PARAM])

    def run_ended(self, event: RunEnded) -> None:
        """Logs the figures of the whole run that MLflow lacks, and sets the status of the MLflow runs."""
        for model in event.models:
            run_id = self._run_id(model)
            # MLflow appends to a metric's history, so a second call must not log an equal value again.
            stored = self._client.get_run(run_id).data.metrics
            values = event.figures.get(model.name, {})
            self._log(model, {key: value for key, value in values.items() if stored.get(key) != value}, 0, 0)
            if event.outcome in _STATUS:
                self._client.set_terminated(run_id, _STATUS[event.outcome])

    def _run_id(self, model: TrackedModel) -> str:
        """Returns the MLflow run of a model, which is found by its tags, or created with the model's parameters."""
        if model.name not in self._ids:
            client, experiment = self._client, self._opened[1] if self._opened else ""
            existing = client.search_runs([experiment], f"tags.`{_RUN}` = '{model.identity}'", max_results=1)
            self._ids[model.name] = existing[0].info.run_id if existing else self._create(client, experiment, model)
        return self._ids[model.name]

    def _create(self, client: Any, experiment: str, model: TrackedModel) -> str:
        tags = {_RUN: model.identity, _MODEL: model.name}
        run_id = str(client.create_run(experiment, tags=tags, run_name=model.name).info.run_id)
        params = [self._entities.Param(key, value[:_LONGEST_PARAM]) for key, value in model.params.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            client.log_batch(run_id, params=params[start : start + _MOST_PARAMS])
        return run_id

    def _log(self, model: TrackedModel, values: Mapping[str, float], step: int, time_ms: int) -> None:
        metrics = [self._entities.Metric(key, value, time_ms, step) for key, value in values.items()]
        if metrics:
            self._client.log_batch(self._run_id(model), metrics=metrics)
