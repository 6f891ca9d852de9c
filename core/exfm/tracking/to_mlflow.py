"""Logs a run to MLflow: an MLflow run for each model, in the MLflow experiment with the name of the exfm experiment."""

from __future__ import annotations

from collections.abc import Mapping

from exfm.interfaces.data_source import Window
from exfm.tracking.mlflow_client import open_experiment
from exfm.tracking.tracked_run import TrackedModel, TrackedRun

# Tags by which a later call recognises the MLflow runs of an earlier call.
_RUN, _MODEL = "exfm.run", "exfm.model"
# Limits of MLflow's log_batch call: parameters in a batch, and characters of a value.
_MOST_PARAMS, _LONGEST_PARAM = 100, 6000


class MlflowTracker:
    """Logs to the MLflow runs that an earlier call created for the same exfm run, or creates them.

    Args:
        uri: a folder, or the address of a server; a database where the complete MLflow package is installed.

    Raises:
        ConfigError: MLflow is not installed, or cannot use the URI.
    """

    def __init__(self, uri: str, run: TrackedRun) -> None:
        self._client, experiment_id = open_experiment(uri, run.name, "--mlflow")
        import mlflow  # after open_experiment, which reports that it is not installed

        self._entities = mlflow.entities
        self._ids: dict[str, str] = {}
        self._last: dict[str, int] = {}
        for model in run.models:
            self._ids[model.name] = self._mlflow_run_id(experiment_id, run, model)
            self._last[model.name] = self._newest_step(self._ids[model.name])

    def _mlflow_run_id(self, experiment: str, run: TrackedRun, model: TrackedModel) -> str:
        """Finds the MLflow run of a model by its tags, or creates it with the model's parameters."""
        existing = self._client.search_runs(
            [experiment], f"tags.`{_RUN}` = '{run.identity}' and tags.`{_MODEL}` = '{model.name}'", max_results=1
        )
        if existing:
            return str(existing[0].info.run_id)
        tags = {_RUN: run.identity, _MODEL: model.name}
        created = self._client.create_run(experiment, tags=tags, run_name=model.name)
        params = [self._entities.Param(key, value[:_LONGEST_PARAM]) for key, value in model.params.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(created.info.run_id, params=params[start : start + _MOST_PARAMS])
        return str(created.info.run_id)

    def _newest_step(self, run_id: str) -> int:
        # Every window with figures logs its number of examples, so that key alone has all steps.
        return max((metric.step for metric in self._client.get_metric_history(run_id, "examples")), default=-1)

    def last_window(self, model: TrackedModel) -> int:
        """Returns the index of the last window that this call or an earlier call logged; -1 for none."""
        return self._last[model.name]

    def window(self, model: TrackedModel, window: Window, values: Mapping[str, float]) -> None:
        """Logs the figures of a window, at its start in the stream's time."""
        self._last[model.name] = window.index
        self._log(model, values, window.index, window.start_us // 1000)

    def summary(self, model: TrackedModel, values: Mapping[str, float]) -> None:
        """Logs the figures of the whole run that MLflow lacks, and marks the MLflow run as finished."""
        # MLflow appends to a metric's history, so a second call must not log an equal value again.
        stored = self._client.get_run(self._ids[model.name]).data.metrics
        news = {key: value for key, value in values.items() if stored.get(key) != value}
        self._log(model, news, 0, 0)
        self._client.set_terminated(self._ids[model.name])

    def close(self) -> None:
        """Does nothing, because the client keeps no file or connection open."""

    def _log(self, model: TrackedModel, values: Mapping[str, float], step: int, time_ms: int) -> None:
        metrics = [self._entities.Metric(key, value, time_ms, step) for key, value in values.items()]
        if metrics:
            self._client.log_batch(self._ids[model.name], metrics=metrics)
