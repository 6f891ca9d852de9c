"""Binds a run's folder to the time from which its windows are counted, and each model's name in it to the model.

``run.json`` is created with the run's first commit, and ``models/NAME.json``, the record of a model, with the model's
first; each by a single job of several. Until then a corrected model replaces the model that failed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from omegaconf import OmegaConf

from exfm.config.checks import Arm
from exfm.config.component_sources import changed_components, component_hashes
from exfm.config.lenders import RECORD_FORMAT
from exfm.config.loading import Experiment
from exfm.config.model_identity import Difference, differences, identity_digest, model_identities
from exfm.config.resolved import parse_resolved
from exfm.config.retention import RETENTION, parameter_teachers, retention_of_arm
from exfm.config.run_files import (
    CHANGES_FILE,
    CONFIG_FILE,
    HOMES_FILE,
    MODELS_FOLDER,
    RUN_FILE,
    draft_file,
    record_file,
    recorded_names,
)
from exfm.data.windows import WindowGrid
from exfm.errors import ConfigError, RunError
from exfm.mappings import names_of
from exfm.redaction import concealed
from exfm.storage.commits import NONE, STAGES
from exfm.supervision.frozen_teachers import keep_frozen
from exfm.supervision.store import Store

FORMAT = 3

logger = logging.getLogger(__name__)


def open_run(experiment: Experiment, store: Store, models: Collection[str] | None = None) -> str:
    """Writes config.yaml into the run's folder, after checking that its models are those that it has committed.

    Args:
        models: the models that the job will write; by default all that no other run trains.

    Returns:
        The YAML.

    Raises:
        ConfigError: the folder holds other models of these names, or a run of an older format.
    """
    url, workspace = store.workspace.url, store.workspace
    if not workspace.exists(RUN_FILE) and (workspace.names("commits/train") or workspace.names("commits/supervise")):
        raise ConfigError(
            f"{url}: this folder holds a run of exfm 0.1, whose windows are counted otherwise. Finish it with that "
            "version, or give another run_dir."
        )
    read_grid(store)  # raises where the format is older
    resolved = experiment.as_dict()
    trained = [arm for arm in experiment.arms if arm.name not in store.borrowed]
    written = [arm for arm in trained if models is None or arm.name in models]
    store.prepare(names_of(written))
    records = _records(experiment, resolved, store)
    _check_models(store, trained, written, records)
    for arm in written:
        _keep_draft(store, arm, records[arm.name])
    config_yaml = _write_config(experiment, store, resolved)
    keep_frozen(store.workspace, store.frozen.values())
    _register(store, written)
    return config_yaml


def _register(store: Store, written: Collection[Arm]) -> None:
    """Registers the models of a job as readers in the runs that train their other teachers."""
    for teacher in sorted(store.borrowed):
        students: dict[str, bool] = {}
        for arm in written:
            if teacher in arm.teachers:
                students[arm.name] = teacher in parameter_teachers(arm)
        if students:
            lent = store.lent(teacher)
            lent.store.readers.register(store.workspace, lent.model, students, store.frozen_versions.get(teacher))


def _records(experiment: Experiment, resolved: Mapping[str, Any], store: Store) -> dict[str, dict[str, Any]]:
    """Describes each model for its run's folder, and for experiments that it teaches from there."""
    identities = model_identities(experiment, resolved, store.frozen_versions)
    records: dict[str, dict[str, Any]] = {}
    for arm in experiment.arms:
        identity = identities[arm.name]
        records[arm.name] = {
            "format": RECORD_FORMAT,
            "tasks": list(arm.tasks),
            "stores": arm.stores,
            "digest": identity_digest(identity),
            "identity": identity,
            RETENTION: retention_of_arm(arm).as_dict(),
        }
    return records


def _check_models(
    store: Store, trained: Iterable[Arm], written: Collection[Arm], records: Mapping[str, Mapping[str, Any]]
) -> None:
    """Compares the experiment's models with the records of those that have commits.

    Raises:
        ConfigError: a model differs; the message names the key.
    """
    changes: list[Difference] = []
    for arm in trained:
        if not _has_commits(store, arm.name):
            continue
        kept = kept_record(store, arm.name)
        now = records[arm.name]
        for difference in differences(arm, kept["identity"], now["identity"]):
            if not difference.is_free:
                raise ConfigError(_refusal(store, arm, difference))
            if arm in written and not arm.is_control:
                changes.append(difference)
        if arm in written and kept != now:
            store.workspace.write_json(record_file(arm.name), now)
    if changes:
        _note_changes(store, changes)


def _refusal(store: Store, arm: Arm, difference: Difference) -> str:
    remedy = "Give the changed model another name, or the experiment another run_dir"
    if difference.is_of_all_models:
        remedy = "Give another run_dir"
    return (
        f"{store.workspace.url}: this folder holds another model {arm.name!r}: {difference}. {remedy}, or start over "
        "with `exfm run CONFIG --fresh`."
    )


def _has_commits(store: Store, model: str) -> bool:
    return any(store.log.head(stage, model) != NONE for stage in STAGES)


def kept_record(store: Store, model: str) -> dict[str, Any]:
    """Reads the record of a model that has commits."""
    path = record_file(model)
    if not store.workspace.exists(path):
        raise ConfigError(
            f"{store.workspace.name(path)}: the record of a model with commits is missing. Put the file back, or start "
            "over with `exfm run CONFIG --fresh`."
        )
    record = store.workspace.read_json(path)
    assert isinstance(record, dict)
    return record


def recorded_models(store: Store) -> dict[str, dict[str, Any]]:
    """Reads the sections of the models and controls that have commits, whatever file they are of."""
    sections: dict[str, dict[str, Any]] = {}
    for name in sorted(recorded_names(store.workspace.names(MODELS_FOLDER))):
        if store.workspace.exists(record_file(name)):
            sections[name] = {**kept_record(store, name)["identity"]["model"], "control": False}
    return sections


def _keep_draft(store: Store, arm: Arm, record: Mapping[str, Any]) -> None:
    """Writes the record of a model without commits, so that students in other files can wait for it."""
    workspace = store.workspace
    if _has_commits(store, arm.name):
        return
    if workspace.exists(record_file(arm.name)):  # bound, and stopped before its first commit
        workspace.write_json(record_file(arm.name), dict(record))
    else:
        workspace.write_json(draft_file(arm.name), dict(record))


def _write_config(experiment: Experiment, store: Store, resolved: dict[str, Any]) -> str:
    """Writes config.yaml, and the places of the models that other runs train; returns the YAML."""
    workspace = store.workspace
    current = resolved | {"versions": _versions(experiment), "components": component_hashes(experiment)}
    kept: dict[str, Any] = {}
    if workspace.exists(CONFIG_FILE):
        kept = parse_resolved(workspace.read(CONFIG_FILE).decode())
    if workspace.exists(RUN_FILE):
        # The stored hashes win, so that a later run still compares with the code that the run was begun with.
        current["components"] |= kept.get("components") or {}
    text: str = OmegaConf.to_yaml(OmegaConf.create(current))
    if kept != current:
        workspace.write(CONFIG_FILE, text.encode())
    homes = {name: {"run": run, "model": model} for name, (run, model) in store.kept_homes().items()}
    for name, lender in experiment.lenders.items():
        homes[name] = {"run": concealed(lender.run), "model": lender.model}
    if homes:
        workspace.write_json(HOMES_FILE, homes)
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
        kept.append({"at": now, "key": change.key, "was": concealed(change.before), "now": concealed(change.now)})
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


def bind_run(store: Store, grid: WindowGrid) -> None:
    """Binds the folder to its windows, before the first commit of all.

    Raises:
        RunError: another job has bound it meanwhile, and counts windows from another time.
    """
    identity = {"format": FORMAT, "window_origin_us": grid.origin_us, "window_length_us": grid.length_us}
    # Created atomically, because several jobs may reach their first commit at the same time.
    if store.workspace.create(RUN_FILE, (json.dumps(identity, indent=2) + "\n").encode()):
        return
    if store.workspace.read_json(RUN_FILE) != identity:
        raise RunError(
            f"{store.workspace.url}: another job has begun this run meanwhile, with another first window; nothing of "
            "this job is committed. Call it again."
        )


def bind_models(experiment: Experiment, store: Store, names: Collection[str]) -> None:
    """Binds names in the folder to their models, before the models' first commits.

    Raises:
        RunError: another job has bound a name meanwhile to another model.
    """
    records = _records(experiment, experiment.as_dict(), store)
    for name in names:
        record = records[name]
        if not store.workspace.create(record_file(name), (json.dumps(record, indent=2) + "\n").encode()):
            standing = store.workspace.read_json(record_file(name))
            if standing["digest"] != record["digest"]:
                raise RunError(
                    f"{store.workspace.url}: another job has begun another model {name!r} in this folder meanwhile; "
                    "nothing of this job is committed. Give the model another name, or another run_dir."
                )
        store.workspace.remove_file(draft_file(name))


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
