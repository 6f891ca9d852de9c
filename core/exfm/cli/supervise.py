"""`exfm supervise`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES
from exfm.cli.jobs import FINAL, FOLLOW, IDLE, Follow, run_job


def command(
    context: typer.Context,
    config: CONFIG,
    model: Annotated[
        list[str],
        typer.Option("--model", help="A teacher whose snapshots label its students' traffic; may be repeated."),
    ],
    overrides: OVERRIDES = None,
    follow: FOLLOW = False,
    idle_timeout: IDLE = None,
    final: FINAL = False,
) -> None:
    """Labels the windows whose snapshots are there; a teacher without delay labels while it trains."""
    run_job(context.obj, config, overrides or [], model, "supervise", Follow(follow, idle_timeout, final))
