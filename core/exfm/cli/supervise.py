"""`exfm supervise`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.backfill import run_backfill
from exfm.cli.context import CONFIG, LOG_FORMAT, OVERRIDES
from exfm.cli.jobs import FINAL, FOLLOW, IDLE, Follow, run_job
from exfm.errors import ConfigError
from exfm.reporting.log_lines import LogFormat


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
    backfill: Annotated[
        str | None,
        typer.Option(
            metavar="FROM..TO",
            help="Label past windows instead, that begin from FROM on and before TO (UTC): rows of students that the "
            "teacher has not labelled, with snapshots of that time. Several such jobs share the windows.",
        ),
    ] = None,
    log_format: LOG_FORMAT = LogFormat.TEXT,
) -> None:
    """Labels the windows whose snapshots are there; a teacher without delay labels while it trains."""
    if backfill is not None:
        if follow or idle_timeout is not None or final:
            raise ConfigError(
                "--backfill: past windows are there already; leave --follow, --idle-timeout and --final out"
            )
        run_backfill(context.obj, config, overrides or [], model, backfill, log_format)
        return
    run_job(context.obj, config, overrides or [], model, "supervise", Follow(follow, idle_timeout, final), log_format)
