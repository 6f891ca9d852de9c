"""Binds a run's folder to an experiment, and to the time from which its windows are counted.

The first commit binds the folder. Until then a corrected experiment replaces the experiment that failed. ``run.json``
is created with the first commit, by a single job of several.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import xxhash
from omegaconf import OmegaConf

from exfm.config.component_sources import changed_components, component_hashes
from exfm.config.loading import Experiment
from exfm.config.resolved import parse_resolved
from exfm.data.windows import WindowGrid
from exfm.errors import ConfigError, RunError
from exfm.interfaces.schema import rows_may_become
from exfm.redaction import concealed, same_but_for_credentials
from exfm.reporting.results import CHANGES_FILE, CONFIG_FILE
from exfm.supervision.store import Store

RUN_FILE = "run.json"
FORMAT = 2

_FREE = re.compile(
    r"(run_dir|evaluation|compare|plugins|versions|components|parallel|save_in_background|launcher)(\..*)?"
    r"|stream\.(on_bad_row|start|max_skipped_share)"
    r"|models\.[^.]+\.gate(\..*)?"
    r"|models\.[^.]+\.optimizer\.(dense\.(lr|weight_decay)|tables\.(lr|eps))"
)
"""Matches keys that may change while a run goes on, because committed windows do not depend on them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Difference:
    """Describes a key whose value has changed since a run was begun.

    Attributes:
        reason: why a run cannot go on with the change; empty where the two values say it.
    """

    path: str
    before: Any
    now: Any
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.path}: {self.reason}"
        return f"{self.path} was {self.before!r} and is now {self.now!r}"


def open_run(experiment: Experiment, store: Store, models: Collection[str] | None = None) -> str:
    """Writes config.yaml into a folder without commits; in a run, checks that it holds the same experiment.

    Args:
        models: the models that the job will write; all by default.

    Returns:
        The YAML.

    Raises:
        ConfigError: the folder holds a run of another experiment, or of exfm 0.1.
    """
    current = experiment.as_dict() | {"versions": _versions(experiment), "components": component_hashes(experiment)}
    text: str = OmegaConf.to_yaml(OmegaConf.create(current))
    url, workspace = store.workspace.url, store.workspace
    if not workspace.exists(RUN_FILE):
        if workspace.names("commits/train") or workspace.names("commits/supervise"):
            raise ConfigError(
                f"{url}: this folder holds a run of exfm 0.1, whose windows are counted otherwise. Finish it with that "
                "version, or give another run_dir."
            )
        store.prepare(models or [arm.name for arm in experiment.arms])
        workspace.write(CONFIG_FILE, text.encode())
        return text
    store.prepare(models or [arm.name for arm in experiment.arms])
    kept = parse_resolved(workspace.read(CONFIG_FILE).decode())
    changes = []
    for difference in differences(kept, current):
        if not _is_free(difference.path, experiment):
            raise ConfigError(
                f"{url}: this folder holds a run of another experiment: {difference}. "
                "Give another run_dir, or start over with `exfm run CONFIG --fresh`."
            )
        if difference.path.startswith(("models.", "stream.")):
            changes.append(difference)
    if changes:
        _note_changes(store, changes)
    # The stored hashes win, so that a later run still compares with the code that the run was begun with.
    current["components"] |= kept.get("components") or {}
    text = OmegaConf.to_yaml(OmegaConf.create(current))
    if kept != current:
        workspace.write(CONFIG_FILE, text.encode())
    return text


def component_notes(experiment: Experiment, store: Store) -> list[str]:
    """Names the components whose code has changed since the run was begun."""
    kept = parse_resolved(store.workspace.read(CONFIG_FILE).decode())
    return [
        f"{name}: its code has changed since the run was begun; windows committed before are of the old code, and "
        "`exfm run CONFIG --fresh` starts over"
        for name in changed_components(experiment, kept)
    ]


def _note_changes(store: Store, changes: list[Difference]) -> None:
    """Logs the changed values that a run goes on with, and stores them for the report."""
    kept: list[dict[str, Any]] = []
    if store.workspace.exists(CHANGES_FILE):
        kept = store.workspace.read_json(CHANGES_FILE)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for change in changes:
        logger.warning("%s; the run goes on with it", change)
        kept.append({"at": now, "key": change.path, "was": concealed(change.before), "now": concealed(change.now)})
    store.workspace.write_json(CHANGES_FILE, kept)


def read_grid(store: Store) -> WindowGrid | None:
    """Reads the grid of a run's windows; None where nothing is committed."""
    if not store.workspace.exists(RUN_FILE):
        return None
    kept = store.workspace.read_json(RUN_FILE)
    if kept["format"] != FORMAT:
        raise ConfigError(
            f"{store.workspace.url}/{RUN_FILE}: format {kept['format']}; this version of exfm reads format {FORMAT}. "
            "Go on with the version that config.yaml names, or give another run_dir."
        )
    return WindowGrid(kept["window_origin_us"], kept["window_length_us"])


def bind_run(experiment: Experiment, store: Store, grid: WindowGrid) -> None:
    """Binds the folder to the experiment and to its windows, before the first commit.

    Raises:
        RunError: another job has bound it meanwhile to another experiment, or counts windows from another time.
    """
    identity = {
        "format": FORMAT,
        "window_origin_us": grid.origin_us,
        "window_length_us": grid.length_us,
        "experiment": _digest(experiment),
    }
    # Created atomically, because several jobs may reach their first commit at the same time.
    if store.workspace.create(RUN_FILE, (json.dumps(identity, indent=2) + "\n").encode()):
        return
    if store.workspace.read_json(RUN_FILE) != identity:
        raise RunError(
            f"{store.workspace.url}: another job has begun this run meanwhile, with another experiment or with another "
            "first window; nothing of this job is committed. Call it again."
        )


def differences(previous: Any, current: Any, path: str = "") -> Iterator[Difference]:
    """Yields each key path whose value has changed; lists of different lengths are compared as a whole.

    A table of the stream's schema that has grown by as much as it may is no difference.
    """
    if isinstance(previous, dict) and isinstance(current, dict):
        keys = dict.fromkeys([*current, *previous])  # a set that keeps the order of the file
        for key in keys:
            before, now = previous.get(key), current.get(key)
            below = f"{path}.{key}" if path else str(key)
            if key == "rows" and below.startswith("stream.") and isinstance(before, int) and isinstance(now, int):
                refused = rows_may_become(before, now, current.get("ids", "row"))
                if refused:
                    yield Difference(below, before, now, refused)
            else:
                yield from differences(before, now, below)
    elif isinstance(previous, list) and isinstance(current, list) and len(previous) == len(current):
        for number, pair in enumerate(zip(previous, current, strict=True)):
            yield from differences(*pair, f"{path}.{number}")
    elif not same_but_for_credentials(previous, current):
        yield Difference(path, previous, current)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of each key that holds no further keys."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _is_free(path: str, experiment: Experiment) -> bool:
    free_fields = [f"stream.source.{field}" for field in type(experiment.source).free_fields]
    return bool(_FREE.fullmatch(path)) or path in free_fields


def _digest(experiment: Experiment) -> str:
    """Computes the checksum of the keys that bind a run, which two jobs that begin it at once must agree on."""
    bound: dict[str, Any] = {}
    for path, value in _leaves(experiment.as_dict()):
        if not _is_free(path, experiment):
            bound[path] = value
    return xxhash.xxh3_128_hexdigest(json.dumps(bound, sort_keys=True).encode())


def _versions(experiment: Experiment) -> dict[str, str]:
    """Collects the versions of the packages and plugins that are installed, by distribution."""
    versions: dict[str, str] = {}
    for package in ("exfm", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue  # of the two builds of fbgemm a machine has either
    for plugin in experiment.registry.plugins.values():
        if plugin.status == "loaded":
            versions[plugin.distribution] = plugin.version
    return versions
