"""`exfm train`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.jobs import FOLLOW, IDLE, Follow, run_job


def command(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="The experiment file, any fsspec URL.")],
    model: Annotated[str, typer.Option("--model", help="The model to train, with its control if it has one.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the file's.")
    ] = None,
    follow: FOLLOW = False,
    idle_timeout: IDLE = None,
) -> None:
    """Trains one model on the windows whose supervision is there; others may run at the same time."""
    run_job(context.obj, config, overrides or [], model, "train", Follow(follow, idle_timeout))
