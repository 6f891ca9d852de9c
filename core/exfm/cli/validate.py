"""`exfm validate`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import Session
from exfm.errors import ConfigError


def command(
    context: typer.Context,
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="Experiment files; key=value overrides all.")
    ],
) -> None:
    """Checks each file; exit status 2 when one is wrong."""
    from exfm.config.loading import load_experiment
    from exfm.training.building import check_models

    session: Session = context.obj
    overrides = [argument for argument in configs if "=" in argument.partition("/")[0]]
    files = [argument for argument in configs if argument not in overrides]
    if not files:
        raise ConfigError(f"name at least one experiment file; given: {' '.join(overrides)}")
    wrong = 0
    for path in files:
        try:
            experiment = load_experiment(path, overrides, block=session.block)
            check_models(experiment)
        except ConfigError as error:
            wrong += 1
            typer.echo(f"error: {error}", err=True)
        else:
            typer.echo(f"{path}: ok: {', '.join(arm.name for arm in experiment.arms)}")
            for arm in experiment.arms:
                if arm.lookups:
                    names = ", ".join(lookup.name for lookup in arm.lookups)
                    typer.echo(f"{path}: models.{arm.name}: costs lookups at serving: {names}")
    if wrong:
        raise typer.Exit(2)
