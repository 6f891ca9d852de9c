"""Connects to MLflow, and opens the experiment that runs are logged to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from exfm.errors import ConfigError
from exfm.extras import import_extra

_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def _url(folder: str) -> str:
    """Makes a folder's path absolute, because MLflow caches the folder that a relative path named at its first use."""
    return Path(folder).absolute().as_uri()


def open_experiment(uri: str, name: str) -> tuple[Any, str]:
    """Opens the MLflow experiment with a name, or creates it.

    Args:
        uri: a folder, or the address of a server; a database where the complete MLflow package is installed.

    Returns:
        The client (``mlflow.MlflowClient``), and the experiment's id.

    Raises:
        ConfigError: MLflow is not installed, or cannot use the URI.
    """
    mlflow = import_extra("mlflow", "MLflow", "mlflow")
    scheme = urlsplit(uri).scheme
    is_folder = scheme == "file" or (not scheme and uri != "databricks")
    if is_folder:
        # MLflow 3 refuses a folder unless this variable allows it; the user allows it by naming a folder.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    try:
        client = mlflow.MlflowClient(tracking_uri=_url(uri) if is_folder and not scheme else uri)
        experiment = client.get_experiment_by_name(name)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        hint = ""
        if scheme.partition("+")[0] in _DATABASES:
            hint = "; a database takes the whole of MLflow: pip install mlflow. A folder such as ./mlruns does not"
        raise ConfigError(f"{uri}: {' '.join(str(error).split())}{hint}") from error
    return client, experiment.experiment_id if experiment else client.create_experiment(name)
