"""`exfm train`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import CONFIG, LOG_FORMAT, OVERRIDES
from exfm.cli.jobs import FINAL, FOLLOW, IDLE, Follow, run_job
from exfm.reporting.log_lines import LogFormat


def command(
    context: typer.Context,
    config: CONFIG,
    model: Annotated[
        list[str], typer.Option("--model", help="A model to train, with its added control; may be repeated.")
    ],
    overrides: OVERRIDES = None,
    follow: FOLLOW = False,
    idle_timeout: IDLE = None,
    final: FINAL = False,
    log_format: LOG_FORMAT = LogFormat.TEXT,
) -> None:
    """Trains models on the windows whose supervision is there; others may run at the same time."""
    run_job(context.obj, config, overrides or [], model, "train", Follow(follow, idle_timeout, final), log_format)
