"""A run in MLflow: one MLflow run for each model, in the experiment of the same name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exfm.errors import ConfigError
from exfm.interfaces.data_source import Window
from exfm.tracking.figures import TrackedModel, TrackedRun

_RUN, _MODEL = "exfm.run", "exfm.model"
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_MOST_PARAMS, _LONGEST_PARAM = 100, 6000


def _url(folder: str) -> str:
    """A folder's whole address: MLflow keeps in mind what a relative one meant when it was first used."""
    return Path(folder).absolute().as_uri()


class MlflowTracker:
    """Logs to the MLflow runs that an earlier call has made for the same run, or to new ones.

    Args:
        uri: a folder, or the address of a server; a database where the whole of MLflow is installed.

    Raises:
        ConfigError: MLflow is not installed, or cannot use the URI.
    """

    def __init__(self, uri: str, run: TrackedRun) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise ConfigError(f"MLflow cannot be imported ({error}): pip install 'exfm[mlflow]'") from error
        self._entities = mlflow.entities
        scheme = urlsplit(uri).scheme
        is_folder = scheme == "file" or (not scheme and uri != "databricks")
        if is_folder:  # MLflow 3 refuses a folder unless one asks for it, which the user has done
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        try:
            self._client: Any = mlflow.MlflowClient(tracking_uri=uri if scheme or not is_folder else _url(uri))
            experiment = self._client.get_experiment_by_name(run.name)
        except (mlflow.exceptions.MlflowException, OSError) as error:
            hint = ""
            if scheme.partition("+")[0] in _DATABASES:
                hint = "; a database takes the whole of MLflow: pip install mlflow. A folder such as ./mlruns does not"
            raise ConfigError(f"--mlflow: {uri}: {' '.join(str(error).split())}{hint}") from error
        home = experiment.experiment_id if experiment else self._client.create_experiment(run.name)
        self._ids = {model.name: self._run_of(home, run, model) for model in run.models}
        self._last = {model.name: self._newest(self._ids[model.name]) for model in run.models}

    def _run_of(self, experiment: str, run: TrackedRun, model: TrackedModel) -> str:
        known = self._client.search_runs(
            [experiment], f"tags.`{_RUN}` = '{run.identity}' and tags.`{_MODEL}` = '{model.name}'", max_results=1
        )
        if known:
            return str(known[0].info.run_id)
        tags = {_RUN: run.identity, _MODEL: model.name}
        made = self._client.create_run(experiment, tags=tags, run_name=model.name)
        params = [self._entities.Param(key, value[:_LONGEST_PARAM]) for key, value in model.params.items()]
        for start in range(0, len(params), _MOST_PARAMS):
            self._client.log_batch(made.info.run_id, params=params[start : start + _MOST_PARAMS])
        return str(made.info.run_id)

    def _newest(self, run_id: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(run_id, "examples")), default=-1)

    def last_window(self, model: TrackedModel) -> int:
        """The last window that has been logged, by this call or an earlier one; -1 for none."""
        return self._last[model.name]

    def window(self, model: TrackedModel, window: Window, values: Mapping[str, float]) -> None:
        """Logs a window's figures."""
        self._last[model.name] = window.index
        self._log(model, values, window.index, window.start_us // 1000)

    def summary(self, model: TrackedModel, values: Mapping[str, float]) -> None:
        """Logs the figures of the run that are not there yet, and marks the MLflow run as finished."""
        stored = self._client.get_run(self._ids[model.name]).data.metrics
        self._log(model, {key: value for key, value in values.items() if stored.get(key) != value}, 0, 0)
        self._client.set_terminated(self._ids[model.name])

    def close(self) -> None:
        """Nothing is held open."""

    def _log(self, model: TrackedModel, values: Mapping[str, float], step: int, time_ms: int) -> None:
        metrics = [self._entities.Metric(key, value, time_ms, step) for key, value in values.items()]
        if metrics:
            self._client.log_batch(self._ids[model.name], metrics=metrics)
