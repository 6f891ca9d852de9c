"""`exfm repair`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exfm.cli.context import Session
from exfm.errors import ConfigError, PluginError
from exfm.mappings import values_at

if TYPE_CHECKING:
    from exfm.registry.registry import Registry
    from exfm.storage.chains import Chain
    from exfm.supervision.repair import Ties


def command(
    context: typer.Context,
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run's folder, any fsspec URL.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report damage and change nothing.")] = False,
) -> None:
    """Checks every committed file, and takes models back to before the first window that is damaged."""
    from exfm.config.resolved import parse_resolved
    from exfm.config.run_files import CONFIG_FILE
    from exfm.scheduling.identity import recorded_models
    from exfm.supervision.frozen_teachers import kept_frozen
    from exfm.supervision.repair import Ties, find_repair
    from exfm.supervision.store import Store

    session: Session = context.obj
    store = Store(run_dir)
    if not store.workspace.exists(CONFIG_FILE):
        raise ConfigError(f"{run_dir}: no {CONFIG_FILE} here; `exfm run` writes it into a run's folder")
    config = parse_resolved(store.workspace.read(CONFIG_FILE).decode())
    # Other files may have trained models in the folder.
    ties = _ties({**recorded_models(store), **config["models"]}, session.registry)
    # The labels of frozen teachers depend on no other files of the run.
    ties |= {frozen.stored_as: Ties() for frozen in kept_frozen(store.workspace)}
    # Leftovers of a killed process are no damage, so they are removed before the check.
    if not dry_run:
        store.sweep(ties)
    repair = find_repair(store, ties)
    for words in repair.problems:
        typer.echo(f"damaged: {words}")
    goes_back, removed = "goes back", "removed"
    if dry_run:
        goes_back, removed = "would go back", "would be removed"
    for chain in repair.rewound:
        typer.echo(f"{goes_back}: {_chain_words(chain)}")
    if repair.orphans:
        typer.echo(f"{removed}: {len(repair.orphans)} files that no manifest names")
    if not dry_run:
        repair.apply(store)
    if not repair.problems:
        typer.echo(f"{run_dir}: {repair.windows} committed windows with {repair.files} files, nothing damaged")


def _chain_words(chain: Chain) -> str:
    """Describes the window that a model goes back to, and the windows that the next run repeats."""
    subject, goal = chain.model, "to the beginning"
    if chain.stage != "train":
        subject = f"the labels of {chain.model}"
    if chain.kept:
        goal = f"to after window {chain.kept[-1].window}"
    count = len(chain.removed)
    windows = "window" if count == 1 else "windows"
    return f"{subject} {goal}; the next `exfm run` does {count} {windows} again"


def _ties(models: Mapping[str, Any], registry: Registry) -> dict[str, Ties]:
    """Computes by model the properties that decide which models go back together; an added control has none."""
    from exfm.config.run_files import CONTROL_SUFFIX
    from exfm.interfaces.duration import parse_duration
    from exfm.supervision.repair import Ties

    teachers: set[str] = set()
    for model in models.values():
        teachers.update(_input_teachers(model))
        for transfer in model["transfer"]:
            teachers.update((transfer["teacher"], *transfer["fallback"]))
    ties = {}
    for name, model in models.items():
        # A student that takes parameters of its teacher reads the teacher's snapshots, which an earlier window needs.
        parameter_teachers: set[str] = set()
        for transfer in model["transfer"]:
            if _reads_parameters(transfer["name"], registry):
                parameter_teachers.add(transfer["teacher"])
        delay = parse_duration(model["supervision"]["delay"])
        ties[name] = Ties(delay, name in teachers, sorted(parameter_teachers))
        if model["control"] is True:
            ties[f"{name}{CONTROL_SUFFIX}"] = Ties()
    return ties


def _input_teachers(model: Mapping[str, Any]) -> Iterator[str]:
    """Yields the teachers whose stored vectors a model reads; exfm 0.1 named them under ``lookups``."""
    yield from values_at(model.get("inputs", ()), "teacher")
    yield from model.get("lookups", ())


def _reads_parameters(strategy: str, registry: Registry) -> bool:
    """Checks whether a strategy reads its teacher's snapshots; a strategy that is not installed may read them."""
    try:
        return "parameters" in registry.resolve("transfer_strategy", strategy).requires
    except PluginError:
        return True
