"""Holds the runs that the page shows, by number: a browser names no folder, so that it can ask for no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

from exfm.config.run_files import CONFIG_FILE, REPORT_FILE
from exfm.errors import ConfigError, RunError, suggestion
from exfm.redaction import without_credentials
from exfm.storage.workspace import Workspace
from exfm.watching.history import History
from exfm.watching.run_status import RunWatch

_LOOK_EVERY_S: Final = 1.0
"""Age of a status that several pages share: a run is not read once for each of them."""

MOST_COMPARED: Final = 40

_AT_ONCE: Final = 16


class WatchedRun:
    """Looks at a run for any number of pages, which threads of the server serve.

    Args:
        url: the run's folder.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._watch: RunWatch | None = None
        self._looked_s = float("-inf")
        self._status: dict[str, Any] = {}
        self._histories: dict[str, History] = {}

    @property
    def label(self) -> str:
        """The folder, without credentials."""
        return without_credentials(self.url)

    def status(self) -> Mapping[str, Any]:
        """Returns the status of the run, at most a second old.

        Raises:
            ConfigError: the folder holds no run.
        """
        with self._lock:
            # Under the lock: pages that ask during a look wait for it and share its answer.
            if time.monotonic() - self._looked_s >= _LOOK_EVERY_S:
                self._status = self._opened().look()
                # From the end of the look, so that a slow store has a pause between two looks.
                self._looked_s = time.monotonic()
            return self._status

    def history(self, names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
        """Returns the newest windows of models.

        Raises:
            ConfigError: the run has no such model.
            RunError: a manifest is damaged or missing.
        """
        with self._lock:
            models = {model.name: model for model in self._opened().folder.models()}
            histories: dict[str, list[dict[str, Any]]] = {}
            for name in names:
                if name not in models:
                    raise ConfigError(f"no model is called {name!r}.{suggestion(name, models)}")
                model = models[name]
                control = models.get(model.control or "")
                if name not in self._histories:
                    self._histories[name] = History(model.trained, None if control is None else control.trained)
                try:
                    histories[name] = self._histories[name].points()
                except RunError:
                    # A repair may have removed manifests that were read before.
                    self._opened().folder.forget(model)
                    del self._histories[name]
                    raise
            return histories

    def report(self) -> bytes:
        """Reads the run's report.

        Raises:
            ConfigError: there is none yet.
        """
        try:
            return self._opened().folder.workspace.read(REPORT_FILE)
        except FileNotFoundError as error:
            raise ConfigError(f"{self.label}: no {REPORT_FILE} here; `exfm run` writes it when a run ends") from error

    def _opened(self) -> RunWatch:
        # At the first request, so that a folder of many runs is listed without reading each.
        if self._watch is None:
            self._watch = RunWatch(self.url)
        return self._watch


def find_runs(urls: Sequence[str]) -> list[WatchedRun]:
    """Finds the runs of folders: each that is a run, with the points of its sweep, or else the runs directly in it.

    Raises:
        ConfigError: a folder holds no run.
    """
    runs: dict[str, WatchedRun] = {}
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for url in urls:
            url = url.rstrip("/")
            workspace = Workspace(url)
            names = [f"sweep/{name}" for name in workspace.names("sweep")]
            if workspace.exists(CONFIG_FILE):
                runs[url] = WatchedRun(url)
            else:
                names = workspace.names("")
            is_run = pool.map(lambda name, workspace=workspace: _is_run(workspace, name), names)
            inside = [name for name, answer in zip(names, is_run, strict=True) if answer]
            if url not in runs and not inside:
                raise ConfigError(f"{without_credentials(url)}: neither a run nor a folder of runs: no {CONFIG_FILE}")
            for name in inside:
                runs[f"{url}/{name}"] = WatchedRun(f"{url}/{name}")
    return list(runs.values())


def _is_run(workspace: Workspace, folder: str) -> bool:
    with suppress(OSError):  # a file beside the runs
        return workspace.exists(f"{folder}/{CONFIG_FILE}")
    return False
