"""What the commands share: arguments, blocked plugins, and JSON on the screen."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from exfm.registry.registry import Registry

CONFIG = Annotated[str, typer.Argument(metavar="CONFIG", help="The experiment file, any fsspec URL.")]
OVERRIDES = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the file's.")
]


@dataclass
class Session:
    """The options before the command."""

    block: tuple[str, ...]

    @cached_property
    def registry(self) -> Registry:
        """The installed components without the blocked plugins."""
        from exfm.registry.discovery import discover

        return discover(self.block)


def print_json(value: Any) -> None:
    """Prints a value as JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
