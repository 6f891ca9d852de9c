"""Lists the snapshots of a run, with their figures, their states and their aliases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from exfm.config.resolved import parse_resolved
from exfm.config.run_files import CONFIG_FILE, CONTROL_SUFFIX
from exfm.errors import ConfigError, suggestion
from exfm.evaluation.label_kinds import from_counters
from exfm.scheduling.identity import recorded_models
from exfm.storage.snapshots import Snapshot
from exfm.supervision.store import Store
from exfm.training.gate import Comparison

State = Literal["published", "held", "retired"]


@dataclass(frozen=True)
class ListedPredecessor:
    """Describes the comparison of a model with its newest published snapshot, on the last rows of a window.

    Attributes:
        version: of that snapshot.
        tasks: by task, the NE of the model and of the snapshot, and the share by which the model's is above.
    """

    version: int
    tasks: Mapping[str, Mapping[str, float | None]]


@dataclass(frozen=True)
class ListedSnapshot:
    """Describes a snapshot to its operator.

    Attributes:
        watermark: the model has trained on rows before this time, ISO 8601.
        tasks: NE and calibration of the window before the snapshot, by task; empty if the commit has none.
        predecessor: what a gate compared the model with at the end of that window; None if it did not.
        bytes: size of the files that are stored.
        delta_of: version of the snapshot of which the files have changes alone; None of a full snapshot.
        newest: whether training goes on from the snapshot.
        held: by task, why the snapshot is held.
        aliases: names that point at the snapshot.
    """

    model: str
    version: int
    watermark: str
    tasks: Mapping[str, Mapping[str, float | None]]
    predecessor: ListedPredecessor | None
    bytes: int
    delta_of: int | None
    state: State
    newest: bool
    held: Mapping[str, str]
    aliases: tuple[str, ...]


def open_run_folder(run: str) -> tuple[Store, list[str]]:
    """Opens a run's folder; returns its store, and the names of its models and controls.

    Raises:
        ConfigError: the folder holds no run.
    """
    store = Store(run)
    if not store.workspace.exists(CONFIG_FILE):
        raise ConfigError(f"{run}: no {CONFIG_FILE} here; `exfm run` writes it into a run's folder")
    models: Mapping[str, Any] = parse_resolved(store.workspace.read(CONFIG_FILE).decode())["models"]
    names: list[str] = []
    for name, model in models.items():
        names.append(name)
        if model["control"] is True:
            names.append(f"{name}{CONTROL_SUFFIX}")
    # Other files may have trained models in the folder.
    return store, list(dict.fromkeys([*names, *recorded_models(store)]))


def check_model(model: str, names: list[str]) -> None:
    """Checks that a run has a model.

    Raises:
        ConfigError: it has none of that name.
    """
    if model not in names:
        raise ConfigError(f"--model: no model is called {model!r}.{suggestion(model, names)}")


def list_snapshots(store: Store, model: str) -> list[ListedSnapshot]:
    """Lists the snapshots of a model, oldest first."""
    snapshots = list(store.snapshots.committed(model))[::-1]
    aliases = store.snapshots.aliases.names(model)
    stored = set(store.snapshots.versions(model))
    listed: list[ListedSnapshot] = []
    for snapshot in snapshots:
        # A folder is removed with its snapshot, and there are many more retired snapshots than folders.
        is_stored = snapshot.version in stored and store.snapshots.is_stored(snapshot)
        counters = store.log.load("train", model, snapshot.version).counters
        entry = ListedSnapshot(
            model=model,
            version=snapshot.version,
            watermark=datetime.fromtimestamp(snapshot.watermark_us / 1e6, UTC).isoformat(timespec="seconds"),
            tasks=_figures(counters),
            predecessor=_predecessor(counters),
            bytes=snapshot.weights.bytes + snapshot.training.bytes if is_stored else 0,
            delta_of=None if snapshot.delta is None else snapshot.delta.after,
            state=_state(snapshot, is_stored),
            newest=snapshot is snapshots[-1],
            held=snapshot.held,
            aliases=tuple(aliases.get(snapshot.version, ())),
        )
        listed.append(entry)
    return listed


def _state(snapshot: Snapshot, is_stored: bool) -> State:
    if not is_stored:
        return "retired"
    return "held" if snapshot.held else "published"


def _figures(counters: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Computes NE and calibration by task from the counters of a window's commit."""
    figures: dict[str, dict[str, float | None]] = {}
    for task, counted in counters.get("prequential", {}).items():  # none in windows of exfm before it counted them
        moments = from_counters(counted)
        figures[task] = {"ne": moments.ne, "calibration": moments.calibration}
    return figures


def _predecessor(counters: Mapping[str, Any]) -> ListedPredecessor | None:
    """Computes the figures of a comparison from the counters of a window's commit."""
    comparison = Comparison.from_counters(counters)
    if comparison is None:
        return None
    tasks: dict[str, dict[str, float | None]] = {}
    for task, pair in comparison.tasks.items():
        tasks[task] = {"ne": pair.model.ne, "predecessor_ne": pair.predecessor.ne, "excess": pair.excess}
    return ListedPredecessor(comparison.version, tasks)
