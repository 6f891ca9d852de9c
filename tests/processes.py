"""Processes for tests, forked from one that has imported torch and torchrec already: that takes longer than most jobs.

Each is a process like any other: with memory of its own, an exit status, and signals that kill it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import site
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from html import escape
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["torchrec", "exfm.cli.run", "exfm.experiment.run", "exfm.reporting.html", "torch.distributed.launcher.api"]
)


def start(
    function: Callable[..., object], *arguments: Any, said: Path | None = None, environment: Mapping[str, str] = {}
) -> BaseProcess:
    """Starts a function of a module in a process of its own, in this process's folder and environment.

    Args:
        said: a folder for what it prints, in the files ``out`` and ``err``; by default that is lost.
        environment: variables besides.
    """
    variables = {**os.environ, **environment}
    process = _FORKS.Process(target=_call, args=(function, arguments, Path.cwd(), variables, said))
    process.start()
    return process


def start_exfm(*arguments: str, said: Path | None = None, environment: Mapping[str, str] = {}) -> BaseProcess:
    """Starts the command line in a process of its own."""
    return start(_exfm, arguments, said=said, environment=environment)


def run_function(
    function: Callable[..., object], *arguments: Any, environment: Mapping[str, str] = {}
) -> CompletedProcess[str]:
    """Calls a function of a module in a new process, and waits for it."""
    with tempfile.TemporaryDirectory() as name:
        said = Path(name)
        process = start(function, *arguments, said=said, environment=environment)
        process.join()
        assert process.exitcode is not None
        out, err = ((said / file).read_text(encoding="utf-8") for file in ("out", "err"))
    return CompletedProcess([], process.exitcode, out, err)


def run_exfm(*arguments: str, environment: Mapping[str, str] = {}) -> CompletedProcess[str]:
    """Calls the command line in a process of its own, and waits for it."""
    return run_function(_exfm, arguments, environment=environment)


def run_module(*command: str, packages: str, folder: Path | None = None) -> CompletedProcess[str]:
    """Calls ``python -m``, with what is installed in another folder besides, and waits for it."""
    return run_function(_module, command, packages, folder or Path.cwd())


def torchrun(function: Callable[..., object], *arguments: Any, processes: int, restarts: int = 0) -> None:
    """Calls a function in so many processes at once, as torchrun starts and restarts them."""
    environment = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = run_function(_launch, function, arguments, processes, restarts, environment=environment)
    assert done.returncode == 0, done.stderr[-8000:]


def leave_plots_out(patch: pytest.MonkeyPatch) -> None:
    """Leaves the plots of reports empty, because matplotlib takes as long as the training of a small run."""
    patch.setattr("exfm.reporting.plots.svg", _without_drawing)
    for plot in ("ne_plot", "calibration_plot", "bars_plot", "age_plot"):
        patch.setattr(f"exfm.reporting.plots.{plot}", _empty_plot)


def _without_drawing(_: object, title: str) -> str:
    return f'<svg role="img" aria-label="{escape(title)}"/>'


def _empty_plot(*_: object) -> str:
    return '<svg role="img"/>'


def _call(
    function: Callable[..., object],
    arguments: Sequence[Any],
    folder: Path,
    variables: dict[str, str],
    said: Path | None,
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # chosen by these variables, even if a preloaded module has asked for it
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(said / name if said else os.devnull, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    function(*arguments)


def _exfm(arguments: Sequence[str]) -> None:
    from exfm.cli.main import main

    sys.argv = ["exfm", *arguments]
    main()


def _module(command: Sequence[str], packages: str, folder: Path) -> None:
    os.chdir(folder)
    sys.path = [str(folder), *(path for path in sys.path if Path(path) != ROOT)]
    site.addsitedir(packages)
    sys.argv = list(command)
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


def _launch(function: Callable[..., object], arguments: Sequence[Any], processes: int, restarts: int) -> None:
    from exfm.testing.torchrun import launch

    launch(function, *arguments, processes=processes, restarts=restarts)
