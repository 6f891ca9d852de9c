"""`exfm plugins`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import Session, console, print_json


def command(
    context: typer.Context, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> None:
    """Lists every plugin, with the reason why any is blocked or broken."""
    session: Session = context.obj
    plugins = list(session.registry.plugins.values())
    if as_json:
        print_json([plugin.as_dict() for plugin in plugins])
        return

    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("plugin", "distribution", "status", "components"):
        table.add_column(heading, overflow="fold")
    for plugin in plugins:
        table.add_row(
            plugin.name, f"{plugin.distribution} {plugin.version}", plugin.status, "\n".join(plugin.components) or "-"
        )
    console(160).print(table)
    for plugin in plugins:
        if plugin.reason:
            typer.echo(f"{plugin.name} is {plugin.status}: {plugin.reason}")
