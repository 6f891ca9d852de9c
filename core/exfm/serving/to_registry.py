"""Registers an export as a version of a model in MLflow's model registry."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from exfm.errors import ConfigError, RunError
from exfm.extras import import_extra
from exfm.mlflow_client import open_experiment
from exfm.serving.description import Description

_FOLDER = "export"  # of the run's artifacts


class RegistryTarget:
    """Logs files as artifacts of an MLflow run, and registers them as a version of a model.

    They have no MLflow flavour, because the flavours for torch pickle.

    Args:
        name: of the registered model.
        tracking_uri: by default that of the environment variable MLFLOW_TRACKING_URI.

    Raises:
        ConfigError: there is no name or no URI, or MLflow is not installed.
    """

    def __init__(self, name: str, tracking_uri: str | None) -> None:
        if not name:
            raise ConfigError("TARGET: a registered model of MLflow is written mlflow:NAME; given: no name")
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            raise ConfigError("--tracking-uri: say where MLflow is, or set MLFLOW_TRACKING_URI")
        mlflow = import_extra("mlflow", "MLflow", "mlflow")
        self._failure = mlflow.exceptions.MlflowException
        self._name = name
        self._uri = uri

    def send(self, folder: Path, description: Description) -> str:
        """Logs the files in the MLflow experiment with the name of the exfm experiment, and registers them.

        Raises:
            ConfigError: MLflow cannot use the URI, or refuses the name.
            RunError: MLflow refuses the files.
        """
        try:
            client, experiment_id = open_experiment(self._uri, description.experiment)
        except ConfigError as error:
            raise ConfigError(f"--tracking-uri: {error}") from error
        self._register_name(client)
        tags = {
            "exfm.experiment": description.experiment,
            "exfm.model": description.model,
            "exfm.snapshot": str(description.snapshot),
            "exfm.watermark": description.watermark.isoformat(),
        }
        text = (
            f"{description.model} of {description.experiment}, snapshot {description.snapshot}, trained until "
            f"{description.watermark.isoformat()}. README.md is its model card; exfm.serving.load reads the files."
        )
        run = client.create_run(experiment_id, tags=tags, run_name=f"{description.model}, export").info
        try:
            client.log_artifacts(run.run_id, str(folder), _FOLDER)
            source = f"{run.artifact_uri}/{_FOLDER}"
            version = client.create_model_version(self._name, source, run.run_id, tags=tags, description=text)
        except BaseException as error:
            client.set_terminated(run.run_id, "FAILED")
            if isinstance(error, self._failure):
                raise RunError(f"mlflow:{self._name}: {' '.join(str(error).split())}") from error
            raise
        client.set_terminated(run.run_id)
        return f"models:/{self._name}/{version.version}"

    def _register_name(self, client: Any) -> None:
        """Creates the registered model if there is none."""
        try:
            if not client.search_registered_models(f"name = '{self._name}'", max_results=1):
                client.create_registered_model(self._name)
        except self._failure as error:
            raise ConfigError(f"TARGET: mlflow:{self._name}: {' '.join(str(error).split())}") from error
