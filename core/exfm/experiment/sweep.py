"""Runs an experiment at every point of a grid of overrides, each point in a folder that its values name."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from typing import Final
from urllib.parse import quote

import yaml

from exfm.config.loading import Experiment, load_experiment, override_keys
from exfm.config.resolved import parse_resolved
from exfm.config.run_files import CONFIG_FILE, RESULTS_FILE
from exfm.errors import ConfigError, RunError
from exfm.experiment.shared_models import shared_models
from exfm.redaction import concealed, redact
from exfm.scheduling.identity import open_run
from exfm.storage.workspace import Workspace
from exfm.supervision.store import keep_homes, kept_siblings, open_store
from exfm.transfer.build import check_models

_LONGEST_FOLDER: Final = 120  # well below the 255 bytes that file systems allow a name
_DIGEST: Final = 12  # hexadecimal digits: 48 bits, far more than a sweep has points


@dataclass(frozen=True)
class Point:
    """A run of a sweep.

    Attributes:
        values: key and value of each axis, as on the command line but without credentials.
        overrides: all overrides of the run, its folder included.
    """

    values: Mapping[str, str]
    overrides: tuple[str, ...]
    experiment: Experiment

    @property
    def label(self) -> str:
        """Names the point in messages."""
        return _label(self.values)

    @property
    def folder(self) -> str:
        """Returns the name of the point's folder."""
        return self.experiment.run_dir.rpartition("/")[2]


@dataclass(frozen=True)
class Sweep:
    """A grid of valid points.

    Attributes:
        name: the name of the experiment.
        folder: holds the points' folders and the comparison.
        axes: the values of each key, as on the command line.
    """

    name: str
    folder: str
    axes: Mapping[str, tuple[str, ...]]
    points: tuple[Point, ...]


def _label(values: Mapping[str, str]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def parse_axes(over: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parses axes of the form ``key=a,b``, split at the commas outside brackets and quotes.

    Raises:
        ConfigError: an axis is not of this form, or a key or a value is named twice.
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


def _split(values: str, axis: str) -> tuple[str, ...]:
    """Splits a YAML sequence without its brackets into its items, as they are written."""
    try:
        node = yaml.compose(f"[{values}]", yaml.SafeLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(
            f"--over {axis!r}: {problem}; values are YAML between commas, with brackets around a list and quotes "
            "around what holds brackets or commas"
        ) from error
    assert isinstance(node, yaml.SequenceNode)
    if not node.value:
        raise ConfigError(f"--over {axis!r}: name at least one value")
    # Marks count the bracket that was added in front.
    return tuple(values[item.start_mark.index - 1 : item.end_mark.index - 1].strip() for item in node.value)


def folder_name(values: Mapping[str, str]) -> str:
    """Names a point's folder: ``key=value`` in the order of keys, percent-encoded; a long name ends in a digest."""
    pairs: list[str] = []
    for key, value in sorted(values.items()):
        # Slashes too, because a value may be a path, and the folder must be a single level.
        pairs.append(f"{quote(key, safe='')}={quote(value, safe='')}")
    name = ",".join(pairs)
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
    overridden = override_keys(overrides)
    both = [key for key in axes if key in overridden]
    if both:
        raise ConfigError(f"{both[0]} is given both by --over and by an override for all points; leave one out")
    shown = _without_secrets(axes)
    base = load_experiment(config, overrides, block=block)
    points: list[Point] = []
    # Each value with its form without credentials, so that folders and messages show none.
    pairs = [list(zip(axes[key], shown[key], strict=True)) for key in axes]
    for chosen in product(*pairs):
        values: dict[str, str] = {}
        point_overrides = list(overrides)
        for key, (value, shown_value) in zip(axes, chosen, strict=True):
            values[key] = shown_value
            point_overrides.append(f"{key}={value}")
        run_dir = f"{base.unresolved_run_dir().rstrip('/')}/sweep/{folder_name(values)}"
        # A JSON string is YAML too, and keeps special characters of the folder from being read as YAML.
        point_overrides.append(f"run_dir={json.dumps(run_dir)}")
        experiment = _load(config, point_overrides, block, values)
        points.append(Point(values, tuple(point_overrides), experiment))
    return Sweep(base.config.name, f"{base.run_dir.rstrip('/')}/sweep", shown, tuple(points))


def _without_secrets(axes: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Conceals credentials in the values, for folders, files and messages."""
    shown: dict[str, tuple[str, ...]] = {}
    for key, values in axes.items():
        # The last name of the key counts, because a key such as ``password`` conceals its whole value.
        concealed_values = tuple(concealed(list(values), key.rpartition(".")[2]))
        # Two points would share a folder.
        if len(set(concealed_values)) < len(concealed_values):
            raise ConfigError(
                f"--over {key}: two of the values differ in their credentials alone: {', '.join(concealed_values)}"
            )
        shown[key] = concealed_values
    return shown


def _load(config: str, overrides: Sequence[str], block: Sequence[str], values: Mapping[str, str]) -> Experiment:
    """Loads and checks the experiment of a point."""
    try:
        experiment = load_experiment(config, overrides, block=block)
        check_models(experiment)
    except ConfigError as error:
        raise ConfigError(f"at the point {_label(values)}: {error}") from error
    return experiment


def open_points(sweep: Sweep) -> list[tuple[Point, ...]]:
    """Writes each point's config.yaml, and chooses the point that trains each model that several points have.

    Returns:
        The points that are not complete, in groups: a group needs models that the groups before it train.

    Raises:
        ConfigError: a point's folder holds another experiment; the message names the point.
    """
    experiments = {point.folder: point.experiment for point in sweep.points}
    complete = {point.folder for point in sweep.points if _is_complete(point.experiment)}
    homes = shared_models(experiments, _begun(sweep, complete))
    unfinished = [point for point in sweep.points if point.folder not in complete]
    for point in unfinished:
        keep_homes(point.experiment.run_dir, homes[point.folder])
        store = open_store(point.experiment)
        try:
            open_run(point.experiment, store)
        except ConfigError as error:
            raise ConfigError(f"at the point {point.label}: {error}") from error
        # Results of the former config would pass for results of this config, if only the evaluation has changed.
        store.workspace.remove_file(RESULTS_FILE)
    return _in_groups(unfinished, homes)


def take_over(point: Point, failed: Collection[str]) -> None:
    """Lets a point train the models itself that points which have failed were to train for it.

    Args:
        failed: the folders of the points that have failed.
    """
    homes = kept_siblings(point.experiment.run_dir)
    keep_homes(point.experiment.run_dir, {name: owner for name, owner in homes.items() if owner not in failed})


def _begun(sweep: Sweep, complete: Collection[str]) -> dict[str, dict[str, str]]:
    """Reads which models other points train, for the points that were begun before.

    An unfinished point relies on points of this sweep and on those that have ended; no other trains anything now.
    """
    folders = {point.folder for point in sweep.points}
    begun: dict[str, dict[str, str]] = {}
    for point in sweep.points:
        if Workspace(point.experiment.run_dir).exists(CONFIG_FILE):
            homes = begun[point.folder] = kept_siblings(point.experiment.run_dir)
            for model, owner in list(homes.items()):
                ended = owner in folders or Workspace(f"{sweep.folder}/{owner}").exists(RESULTS_FILE)
                if point.folder not in complete and not ended:
                    del homes[model]
    return begun


def _in_groups(points: Sequence[Point], homes: Mapping[str, Mapping[str, str]]) -> list[tuple[Point, ...]]:
    """Groups points so that a group needs models of the groups before it alone; order is kept inside a group."""
    left = list(points)
    groups: list[tuple[Point, ...]] = []
    while left:
        waiting = {point.folder for point in left}
        ready = tuple(point for point in left if not waiting & set(homes[point.folder].values()))
        assert ready, "two points train models for each other"
        groups.append(ready)
        left = [point for point in left if point not in ready]
    return groups


def _is_complete(experiment: Experiment) -> bool:
    """Returns whether the folder holds the results of the same config, by any versions."""
    workspace = Workspace(experiment.run_dir)
    if not (workspace.exists(RESULTS_FILE) and workspace.exists(CONFIG_FILE)):
        return False
    kept = parse_resolved(workspace.read(CONFIG_FILE).decode())
    # Emptied on both sides, because another version of the code leaves a point complete.
    code: dict[str, dict[str, str]] = {"versions": {}, "components": {}}
    return kept | code == experiment.as_dict() | code


def run_points(points: Sequence[Point], execute: Callable[[Point], None], jobs: int = 1) -> Iterator[tuple[Point, str]]:
    """Runs points, ``jobs`` at once, and yields each in order with its error, which is empty if it succeeded."""

    def attempt(point: Point) -> str:
        try:
            execute(point)
        except (ConfigError, RunError) as error:
            return str(error)
        except Exception as error:
            # Any error is of its point alone: the other points run. The message is brought to a single line.
            return redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
        return ""

    if jobs == 1:
        yield from ((point, attempt(point)) for point in points)
        return
    pool = ThreadPoolExecutor(jobs)
    try:
        yield from zip(points, pool.map(attempt, points), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # points that have not begun do not run after an interruption


def run_in_subprocess(point: Point, config: str, block: Sequence[str], jobs: int) -> None:
    """Runs `exfm run` for a point in a subprocess, with an equal share of the machine's cores.

    Raises:
        RunError: the run failed; holds the error that it printed.
    """
    command = [sys.executable, "-m", "exfm"]
    for name in block:
        command += ["--block-plugin", name]
    command += ["run", config, *point.overrides]
    # The user's environment comes second, so that its OMP_NUM_THREADS wins.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    done = subprocess.run(command, env=threads | os.environ, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in lines if line.startswith("error: ")] or lines
        raise RunError(errors[-1].removeprefix("error: "))
