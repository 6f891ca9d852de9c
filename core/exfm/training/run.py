"""Runs a whole experiment: the stream loop, then evaluation and report."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from omegaconf import OmegaConf

from exfm.config.checks import CONTROL_SUFFIX
from exfm.config.component_sources import component_hashes
from exfm.config.loading import Experiment
from exfm.errors import ConfigError
from exfm.evaluation.evaluate import Arm as Comparison
from exfm.evaluation.evaluate import ExperimentView, evaluate
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import rows_may_become
from exfm.redaction import concealed, same_but_for_credentials
from exfm.reporting.progress import StreamProgress, in_notebook
from exfm.reporting.results import CONFIG_FILE, REPORT_FILE, RESULTS_FILE, assemble
from exfm.supervision.store import Store
from exfm.training.loop import Clock, Progress, StreamLoop

_FREE_TO_CHANGE = (
    "run_dir", "evaluation", "plugins", "versions", "components", "parallel", "save_in_background",
)  # fmt: skip


def run(experiment: Experiment, on_progress: Callable[[Progress], None] | None = None) -> dict[str, Any]:
    """Runs an experiment, resuming what is committed, and writes results.json and report.html to its run_dir.

    Args:
        experiment: from ``exfm.load_experiment``.
        on_progress: called after every chunk of rows; in a notebook a bar is shown where it is left out.

    Returns:
        The content of results.json. Under a plan of several processes every one calls this; the first one evaluates
        and gets the results, the others get nothing.

    Raises:
        ConfigError: the run_dir holds another experiment, or a row breaks the schema.
        RunError: a committed file is missing or corrupt.
    """
    if on_progress is None and in_notebook():
        with StreamProgress(experiment.config.name) as progress:
            return run(experiment, progress.update)
    store = Store(experiment.run_dir)
    config_yaml = open_run(experiment, store)
    plan = build_plan(experiment)
    loop = StreamLoop(experiment, store, plan, on_progress or (lambda _: None))
    loop.advance()
    assert not loop.waiting_for, loop.waiting_for
    plan.ranks.close()
    return finish(experiment, store, loop.clock, config_yaml) if plan.ranks.is_first else {}


def build_plan(experiment: Experiment) -> ParallelPlan:
    """The experiment's parallel plan, connected to the other processes.

    Raises:
        ConfigError: it refuses the number of processes.
    """
    try:
        plan: ParallelPlan = experiment.config.parallel.build()
    except ValueError as error:
        raise ConfigError(f"parallel: {error}") from error
    return plan


def finish(experiment: Experiment, store: Store, clock: Clock, config_yaml: str) -> dict[str, Any]:
    """Evaluates what is committed and writes results.json and report.html."""
    from exfm.reporting.html import render_report  # matplotlib, which the first batch need not wait for

    figures = evaluate(store, _view(experiment))
    results: dict[str, Any] = concealed(assemble(experiment, store, figures, clock.as_dict()))
    store.workspace.write_json(RESULTS_FILE, results)
    store.workspace.write(REPORT_FILE, render_report(results, config_yaml).encode())
    return results


def open_run(experiment: Experiment, store: Store) -> str:
    """Writes config.yaml into a new run; in an old one, checks that it is the same experiment. Returns the YAML."""
    current = experiment.as_dict() | {"versions": _versions(experiment), "components": component_hashes(experiment)}
    text: str = OmegaConf.to_yaml(OmegaConf.create(current))
    if store.workspace.create(CONFIG_FILE, text.encode()):
        return text
    kept = store.workspace.read(CONFIG_FILE).decode()
    previous = OmegaConf.to_container(OmegaConf.create(kept))
    changed = _difference(previous, current)
    if changed:
        raise ConfigError(
            f"{store.workspace.url}: this folder holds a run of another experiment: {changed}. "
            "Give another run_dir, or remove the folder to start over."
        )
    assert isinstance(previous, dict)
    current["components"] |= previous.get("components") or {}  # what the run was begun with
    text = OmegaConf.to_yaml(OmegaConf.create(current))
    if previous != current:
        store.workspace.write(CONFIG_FILE, text.encode())
    return text


def _difference(previous: Any, current: Any, path: str = "") -> str:
    """The first key whose value is not what it was, or nothing; a table of the stream's schema may have grown."""
    if isinstance(previous, dict) and isinstance(current, dict):
        for key in [*current, *(key for key in previous if key not in current)]:
            before, now = previous.get(key), current.get(key)
            if key == "rows" and path.startswith("stream.") and isinstance(before, int) and isinstance(now, int):
                refused = rows_may_become(before, now, current.get("ids", "row"))
                if refused:
                    return f"{path}.{key}: {refused}"
            elif path or key not in _FREE_TO_CHANGE:
                found = _difference(before, now, f"{path}.{key}" if path else str(key))
                if found:
                    return found
        return ""
    if isinstance(previous, list) and isinstance(current, list) and len(previous) == len(current):
        pairs = enumerate(zip(previous, current, strict=True))
        return next(filter(None, (_difference(*pair, f"{path}.{number}") for number, pair in pairs)), "")
    same = same_but_for_credentials(previous, current)
    return "" if same else f"{path} was {concealed(previous)!r} and is now {concealed(current)!r}"


def _versions(experiment: Experiment) -> dict[str, str]:
    found = {}
    for package in ("exfm", "torch", "torchrec", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pyarrow"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    plugins = experiment.registry.plugins.values()
    return found | {plugin.distribution: plugin.version for plugin in plugins if plugin.status == "loaded"}


def _view(experiment: Experiment) -> ExperimentView:
    arms = {arm.name: arm for arm in experiment.arms}
    elsewhere = {name: tuple(config.predictions) for name, config in experiment.config.teachers.items()}
    comparisons = tuple(
        Comparison(
            arm.base,
            arm.name,
            tuple(name for name in arms[arm.base].teachers if name in arms),
            tuple((name, elsewhere[name]) for name in arms[arm.base].teachers if name in elsewhere),
        )
        for arm in experiment.arms
        if arm.is_control
    )
    assert all(comparison.control == comparison.model + CONTROL_SUFFIX for comparison in comparisons)
    evaluation = experiment.config.evaluation
    return ExperimentView(
        models=tuple((arm.name, arm.tasks) for arm in experiment.arms),
        arms=comparisons,
        skip=evaluation.skip,
        bootstrap_replicates=evaluation.replicates,
        bootstrap_seed=experiment.config.seed,
    )
