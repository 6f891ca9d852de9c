"""Defines arguments that commands share, the session with its blocked plugins, and printing."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exfm.reporting.log_lines import LogFormat

if TYPE_CHECKING:
    from rich.console import Console

    from exfm.registry.registry import Registry

CONFIG = Annotated[str, typer.Argument(metavar="CONFIG", help="The experiment file, any fsspec URL.")]
OVERRIDES = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the file's.")
]

AT = Annotated[
    str | None,
    typer.Option(
        "--at", help="A snapshot: its version, an alias, or a time until which it had trained; by default the latest."
    ),
]
MODEL = Annotated[str, typer.Option("--model", help="The model; a control is called NAME.control.")]
LOG_FORMAT = Annotated[
    LogFormat,
    typer.Option(
        "--log-format", help="json: one JSON object per line on stderr, of progress, warnings and errors alike."
    ),
]
PRODUCTION = "production"  # the alias that is moved by default
RUN = Annotated[str, typer.Argument(metavar="RUN", help="A run's folder, any fsspec URL.")]


@dataclass
class Session:
    """Holds the options before the command."""

    block: tuple[str, ...]

    @cached_property
    def registry(self) -> Registry:
        """The installed components without the blocked plugins."""
        # Imported here, because `exfm --help` needs no plugin.
        from exfm.registry.discovery import discover

        return discover(self.block)


def console(columns: int) -> Console:
    """Opens the console for tables: as wide as the terminal or COLUMNS, and elsewhere as ``columns``."""
    from rich.console import Console

    # Rich takes the width of a terminal or of COLUMNS by itself. In a file it would assume 80 columns.
    if Console().is_terminal or "COLUMNS" in os.environ:
        return Console()
    return Console(width=columns)


def print_json(value: Any) -> None:
    """Prints a value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
