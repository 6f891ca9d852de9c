"""`exfm schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from exfm.cli.context import Session
from exfm.errors import ConfigError


def command(
    context: typer.Context,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here instead of to stdout.")] = None,
) -> None:
    """Prints the schema that a YAML editor completes and checks experiment files with."""
    from exfm.config.json_schema import experiment_schema

    session: Session = context.obj
    text = json.dumps(experiment_schema(session.registry), indent=2, ensure_ascii=False) + "\n"
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{output}: the schema cannot be written: {error}") from error
