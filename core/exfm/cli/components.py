"""`exfm components`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import Session, print_json
from exfm.errors import ConfigError, suggestion
from exfm.registry.hooks import INTERFACES


def command(
    context: typer.Context,
    kind: Annotated[str | None, typer.Argument(metavar="[KIND]", help=f"One of {', '.join(INTERFACES)}.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Lists the components, of a single kind or of all."""
    if kind is not None and kind not in INTERFACES:
        raise ConfigError(f"no kind of component is called {kind!r}.{suggestion(kind, INTERFACES)}")
    session: Session = context.obj
    registry = session.registry
    kinds = [kind] if kind else list(INTERFACES)
    components = []
    for listed in kinds:
        for name in registry.names(listed):
            components.append({"kind": listed, "name": name, "provider": registry.provider(listed, name).distribution})
    if as_json:
        print_json(components)
        return
    for component in components:
        typer.echo(f"{component['kind']}.{component['name']}  ({component['provider']})")
