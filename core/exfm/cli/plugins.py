"""`exfm plugins`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import Session, print_json


def command(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Lists every plugin, with the reason where one is blocked or broken."""
    session: Session = context.obj
    plugins = list(session.registry.plugins.values())
    if as_json:
        print_json([plugin.as_dict() for plugin in plugins])
        return

    from rich.console import Console
    from rich.table import Table

    table = Table("plugin", "distribution", "version", "status", "components", box=None, pad_edge=False)
    for plugin in plugins:
        table.add_row(
            plugin.name, plugin.distribution, plugin.version, plugin.status, "\n".join(plugin.components) or "-"
        )
    Console(width=None if Console().is_terminal else 160).print(table)
    for plugin in plugins:
        if plugin.reason:
            typer.echo(f"{plugin.name} is {plugin.status}: {plugin.reason}")
