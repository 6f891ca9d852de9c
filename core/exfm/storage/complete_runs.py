"""Checks that runs are complete, for what reads their results."""

from __future__ import annotations

from exfm.config.run_files import CONFIG_FILE, RESULTS_FILE
from exfm.errors import ConfigError
from exfm.redaction import without_credentials
from exfm.storage.workspace import Workspace


def check_complete(workspace: Workspace, run_dir: str) -> None:
    """Raises a ConfigError unless a run has its results and its config."""
    missing = [name for name in (RESULTS_FILE, CONFIG_FILE) if not workspace.exists(name)]
    if missing:
        shown = without_credentials(run_dir)
        raise ConfigError(f"{shown}: no {' and no '.join(missing)} here; `exfm run` writes them when a run is complete")
