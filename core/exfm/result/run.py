"""Runs an experiment, or opens a finished run, for Python code: both give a result object."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any

from exfm.config.loading import Experiment, load_experiment
from exfm.config.run_files import CONFIG_FILE, RESULTS_FILE
from exfm.reporting.progress import in_notebook
from exfm.result.run_result import RunResult
from exfm.storage.complete_runs import check_complete
from exfm.storage.workspace import Workspace

if TYPE_CHECKING:
    from exfm.bookkeeping.progress import Progress
    from exfm.interfaces.events import Event
    from exfm.registry.registry import Registry


def run(
    experiment: Experiment,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    windows: int | None = None,
    on_window: Callable[[Progress], None] = lambda _: None,
    on_event: Callable[[Event], None] | None = None,
) -> RunResult:
    """Runs an experiment, resuming after its last commit, and writes results.json and report.html to its run_dir.

    Args:
        experiment: from ``exfm.load_experiment``.
        on_progress: called after every chunk of rows; in a notebook a bar is shown where it is left out.
        windows: run only the stream's first so many windows with rows; a later call goes on from there.
        on_window: called after every window.
        on_event: called with each event of ``exfm.events``, in another thread; an error of it does not end the run.

    Returns:
        The results: a dictionary with the content of results.json, which also has frames, plots and models. Empty on
        any rank but zero, which evaluates. Under a plan of several processes each of them calls this function.

    Raises:
        ConfigError: the run_dir holds another experiment, a row breaks the schema, or ``windows`` is below 1.
        RunError: a committed file is missing or corrupt.
    """
    if in_notebook():
        # torchrec causes warnings of torch when it is imported, about names that a user does not use.
        logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    from exfm.experiment.run import run as run_experiment  # late, because `open_run` needs no torch

    results = run_experiment(experiment, on_progress, windows=windows, on_window=on_window, on_event=on_event)
    return RunResult(results, experiment.run_dir, lambda: experiment)


def open_run(
    run_dir: str | PathLike[str], *, components: Sequence[type[Any]] = (), registry: Registry | None = None
) -> RunResult:
    """Opens a finished run; nothing is trained, read or written but the files of the run that are asked for.

    Args:
        run_dir: the run's folder, any fsspec URL.
        components: classes that the experiment names beside those of the registry, such as a class of a notebook.
        registry: the components to choose from; the installed ones by default.

    Returns:
        The results, as ``exfm.run`` returned them.

    Raises:
        ConfigError: the folder holds no finished run.
    """
    folder = fspath(run_dir).rstrip("/")
    workspace = Workspace(folder)
    check_complete(workspace, folder)

    def load() -> Experiment:
        # JSON is YAML too. The folder may have moved since the run wrote its config.
        overrides = [f"run_dir={json.dumps(folder)}"]
        return load_experiment(f"{folder}/{CONFIG_FILE}", overrides, components=components, registry=registry)

    return RunResult(workspace.read_json(RESULTS_FILE), folder, load)
