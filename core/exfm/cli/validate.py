"""`exfm validate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import Session
from exfm.errors import ConfigError
from exfm.redaction import redact

if TYPE_CHECKING:
    from exfm.config.loading import Experiment


def command(
    context: typer.Context,
    configs: Annotated[
        list[str], typer.Argument(metavar="CONFIG...", help="Experiment files; key=value overrides all.")
    ],
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="Ask the data source which time it covers; reads no row.")
    ] = True,
) -> None:
    """Checks each file; exit status 2 when any is wrong."""
    from exfm.config.loading import load_experiment
    from exfm.transfer.build import check_models

    session: Session = context.obj
    # A path may hold "=" in its folders, but a key holds no "/".
    overrides = [argument for argument in configs if "=" in argument.partition("/")[0]]
    files = [argument for argument in configs if argument not in overrides]
    if not files:
        raise ConfigError(f"name at least one experiment file; given: {' '.join(overrides)}")
    wrong = 0
    for path in files:
        try:
            experiment = load_experiment(path, overrides, block=session.block)
            check_models(experiment)
            if data:
                _check_data(experiment, path)
        except ConfigError as error:
            wrong += 1
            typer.echo(f"error: {error}", err=True)
        else:
            typer.echo(f"{path}: ok: {', '.join(arm.name for arm in experiment.arms)}")
            for arm in experiment.arms:
                if arm.inputs:
                    names = ", ".join(arm.lookups)
                    typer.echo(f"{path}: models.{arm.name}: costs lookups at serving: {names}")
    if wrong:
        raise typer.Exit(2)


def _check_data(experiment: Experiment, path: str) -> None:
    """Checks that the data and the snapshots of frozen teachers exist, by asking the source for its time range."""
    from exfm.data.source_errors import source_errors
    from exfm.supervision.store import open_store

    try:
        with source_errors():
            experiment.source.time_range()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; --no-data checks without the data") from error
    except OSError as error:
        text = redact(" ".join(str(error).split()))
        typer.echo(f"warning: {path}: stream.source: cannot be asked now, so not checked: {text}", err=True)
    if experiment.frozen:
        open_store(experiment)  # raises where no snapshot is what `at` names
