"""`exfm repair`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exfm.cli.context import Session
from exfm.errors import ConfigError, PluginError

if TYPE_CHECKING:
    from exfm.registry.registry import Registry
    from exfm.supervision.chains import Chain
    from exfm.supervision.repair import Ties


def command(
    context: typer.Context,
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run's folder, any fsspec URL.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what is damaged and change nothing.")] = False,
) -> None:
    """Checks every committed file, and takes models back to before the first window that is damaged."""
    from exfm.config.resolved import parse_resolved
    from exfm.reporting.results import CONFIG_FILE
    from exfm.supervision.repair import find_repair
    from exfm.supervision.store import Store

    session: Session = context.obj
    store = Store(run_dir)
    if not store.workspace.exists(CONFIG_FILE):
        raise ConfigError(f"{run_dir}: no {CONFIG_FILE} here; `exfm run` writes it into a run's folder")
    config = parse_resolved(store.workspace.read(CONFIG_FILE).decode())
    ties = _ties(config["models"], session.registry)
    if not dry_run:
        store.sweep(ties)
    repair = find_repair(store, ties)
    for words in repair.problems:
        typer.echo(f"damaged: {words}")
    for chain in repair.back:
        typer.echo(f"{'would go' if dry_run else 'goes'} back: {_in_words(chain)}")
    if repair.orphans:
        typer.echo(f"{'would be ' if dry_run else ''}removed: {len(repair.orphans)} files that no manifest names")
    if not dry_run:
        repair.carry_out(store)
    if not repair.problems:
        typer.echo(f"{run_dir}: {repair.windows} committed windows with {repair.files} files, nothing damaged")


def _in_words(chain: Chain) -> str:
    """Where a model goes back to, and what has to be done again."""
    what = chain.model if chain.stage == "train" else f"the labels of {chain.model}"
    kept, count = chain.kept, len(chain.removed)
    where = f"to after window {kept[-1].window}" if kept else "to the beginning"
    return f"{what} {where}; the next `exfm run` does {count} {'window' if count == 1 else 'windows'} again"


def _ties(models: Mapping[str, Any], registry: Registry) -> dict[str, Ties]:
    """What decides which models go back together, by model; a control is one of its own."""
    from exfm.config.checks import CONTROL_SUFFIX
    from exfm.interfaces.duration import parse_duration
    from exfm.supervision.repair import Ties

    specs = [spec for model in models.values() for spec in model["transfer"]]
    taught = {teacher for spec in specs for teacher in (spec["teacher"], *spec["fallback"])}
    taught |= {teacher for model in models.values() for teacher in model["lookups"]}
    ties = {}
    for name, model in models.items():
        read = {spec["teacher"] for spec in model["transfer"] if _reads_parameters(spec["name"], registry)}
        ties[name] = Ties(parse_duration(model["supervision"]["delay"]), name in taught, sorted(read))
        if model["control"]:
            ties[f"{name}{CONTROL_SUFFIX}"] = Ties()
    return ties


def _reads_parameters(strategy: str, registry: Registry) -> bool:
    """Whether a strategy reads its teacher's snapshots; of one that is not installed it may be so."""
    try:
        return "parameters" in registry.resolve("transfer_strategy", strategy).requires
    except PluginError:
        return True
