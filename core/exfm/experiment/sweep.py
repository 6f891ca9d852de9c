"""Runs one experiment at every point of a grid of overrides, each point in a folder that its values name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Final
from urllib.parse import quote

import yaml

from exfm.config.loading import Experiment, load_experiment
from exfm.config.resolved import parse_resolved
from exfm.errors import ConfigError, RunError
from exfm.redaction import concealed, redact
from exfm.reporting.results import CONFIG_FILE, RESULTS_FILE
from exfm.scheduling.identity import open_run
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store
from exfm.transfer.build import check_models

_LONGEST_FOLDER: Final = 120
_DIGEST: Final = 12


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        values: key and value of each axis, as on the command line but without credentials.
        overrides: all overrides of the run, its folder included.
    """

    values: Mapping[str, str]
    overrides: tuple[str, ...]
    experiment: Experiment

    @property
    def label(self) -> str:
        """How messages name it."""
        return _label(self.values)


@dataclass(frozen=True)
class Sweep:
    """A grid of valid points.

    Attributes:
        name: the experiment's.
        folder: where the points' folders and the comparison are.
        axes: the values of each key, as on the command line.
    """

    name: str
    folder: str
    axes: Mapping[str, tuple[str, ...]]
    points: tuple[Point, ...]


def _label(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def parse_axes(over: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``key=a,b`` each: the key's values, split at the commas that are outside brackets and quotes.

    Raises:
        ConfigError: not of this form, or a key or a value is named twice.
    """
    axes: dict[str, tuple[str, ...]] = {}
    for text in over:
        key, equals, values = text.partition("=")
        if not equals or not key:
            raise ConfigError(f"--over {text!r}: write key.path=a,b, such as models.vm.embedding_dim=8,16")
        if key in axes:
            raise ConfigError(f"--over {text!r}: {key} is given twice; name all of its values at once")
        if key == "run_dir":
            raise ConfigError(f"--over {text!r}: each point has a folder of its own; run_dir=URL says where they lie")
        axes[key] = _split(values, text)
        twice = [value for value in axes[key] if axes[key].count(value) > 1]
        if twice:
            raise ConfigError(f"--over {text!r}: {twice[0]} is named twice")
    return axes


def _split(values: str, given: str) -> tuple[str, ...]:
    """The parts of a YAML sequence without its brackets, as they are written."""
    try:
        node = yaml.compose(f"[{values}]", yaml.SafeLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(
            f"--over {given!r}: {problem}; values are YAML between commas, with brackets around a list and quotes "
            "around what holds brackets or commas"
        ) from error
    assert isinstance(node, yaml.SequenceNode)
    if not node.value:
        raise ConfigError(f"--over {given!r}: name at least one value")
    return tuple(values[part.start_mark.index - 1 : part.end_mark.index - 1].strip() for part in node.value)


def folder_name(values: Mapping[str, str]) -> str:
    """A point's folder: ``key=value`` in the keys' order, percent-encoded; past 120 characters it ends in a digest."""
    name = ",".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted(values.items()))
    if len(name) <= _LONGEST_FOLDER:
        return name
    return f"{name[: _LONGEST_FOLDER - _DIGEST - 1]}-{hashlib.sha256(name.encode()).hexdigest()[:_DIGEST]}"


def plan_sweep(
    config: str, axes: Mapping[str, tuple[str, ...]], overrides: Sequence[str] = (), block: Sequence[str] = ()
) -> Sweep:
    """Loads and checks the experiment at every point of the grid; nothing is run or written.

    Args:
        config: the experiment file.
        axes: from ``parse_axes``.
        overrides: ``key=value`` for all points.
        block: plugins that must not be imported.

    Raises:
        ConfigError: an experiment is wrong; the message names the point.
    """
    both = [key for key in axes if key in {override.partition("=")[0] for override in overrides}]
    if both:
        raise ConfigError(f"{both[0]} is given both by --over and by an override for all points; leave one out")
    shown = _without_secrets(axes)
    base = load_experiment(config, overrides, block=block)
    points = []
    pairs = [list(zip(axes[key], shown[key], strict=True)) for key in axes]
    for chosen in product(*pairs):
        own_values = dict(zip(axes, (value for value, _ in chosen), strict=True))
        values = dict(zip(axes, (name for _, name in chosen), strict=True))
        run_dir = f"{base.unresolved_run_dir().rstrip('/')}/sweep/{folder_name(values)}"
        # A JSON string is YAML too: whatever the folder is called, it is read as it is.
        own = (*overrides, *(f"{key}={value}" for key, value in own_values.items()), f"run_dir={json.dumps(run_dir)}")
        points.append(Point(values, own, _load(config, own, block, values)))
    return Sweep(base.config.name, f"{base.run_dir.rstrip('/')}/sweep", shown, tuple(points))


def _without_secrets(axes: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """The values as folders, files and messages name them."""
    shown = {key: tuple(concealed(list(values), key.rpartition(".")[2])) for key, values in axes.items()}
    for key, values in shown.items():
        if len(set(values)) < len(values):
            raise ConfigError(f"--over {key}: two of the values differ in their credentials alone: {', '.join(values)}")
    return shown


def _load(config: str, overrides: Sequence[str], block: Sequence[str], values: Mapping[str, str]) -> Experiment:
    try:
        experiment = load_experiment(config, overrides, block=block)
        check_models(experiment)
    except ConfigError as error:
        raise ConfigError(f"at the point {_label(values)}: {error}") from error
    return experiment


def open_points(sweep: Sweep) -> tuple[Point, ...]:
    """Writes each point's config.yaml and returns the points that are not complete.

    Raises:
        ConfigError: a point's folder holds another experiment; the message names the point.
    """
    unfinished = tuple(point for point in sweep.points if not _is_complete(point.experiment))
    for point in unfinished:
        store = Store(point.experiment.run_dir)
        try:
            open_run(point.experiment, store)
        except ConfigError as error:
            raise ConfigError(f"at the point {point.label}: {error}") from error
        # Where only the evaluation has changed, what is there are the figures of the old one.
        store.workspace.remove_file(RESULTS_FILE)
    return unfinished


def _is_complete(experiment: Experiment) -> bool:
    """Whether the folder holds the results of this very config, by whatever versions."""
    workspace = Workspace(experiment.run_dir)
    if not (workspace.exists(RESULTS_FILE) and workspace.exists(CONFIG_FILE)):
        return False
    kept = parse_resolved(workspace.read(CONFIG_FILE).decode())
    code: dict[str, dict[str, str]] = {"versions": {}, "components": {}}
    return kept | code == experiment.as_dict() | code


def run_points(points: Sequence[Point], execute: Callable[[Point], None], jobs: int = 1) -> Iterator[tuple[Point, str]]:
    """Runs points, several at once where asked, and yields each with what went wrong, if anything, in their order."""

    def attempt(point: Point) -> str:
        try:
            execute(point)
        except (ConfigError, RunError) as error:
            return str(error)
        except Exception as error:
            return redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return ""

    if jobs == 1:
        yield from ((point, attempt(point)) for point in points)
        return
    pool = ThreadPoolExecutor(jobs)
    try:
        yield from zip(points, pool.map(attempt, points), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def run_in_process_of_its_own(point: Point, config: str, block: Sequence[str], jobs: int) -> None:
    """`exfm run` for one point, with its share of the machine's cores where it is one of several jobs.

    Raises:
        RunError: it failed, with the error that it printed.
    """
    blocked = [argument for name in block for argument in ("--block-plugin", name)]
    command = [sys.executable, "-m", "exfm", *blocked, "run", config, *point.overrides]
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    done = subprocess.run(command, env=threads | os.environ, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in lines if line.startswith("error: ")] or lines
        raise RunError(errors[-1].removeprefix("error: "))
