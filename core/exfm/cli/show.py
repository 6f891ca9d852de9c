"""`exfm show`."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from exfm.cli.context import Session, print_json
from exfm.errors import ConfigError, suggestion
from exfm.registry.hooks import INTERFACES


def command(
    context: typer.Context,
    component: Annotated[str, typer.Argument(metavar="KIND.NAME", help="Such as backbone.wukong.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows what a component is and what can be set on it."""
    kind, _, name = component.partition(".")
    if kind not in INTERFACES or not name:
        raise ConfigError(f"{component!r}: write KIND.NAME, such as backbone.wukong.{suggestion(kind, INTERFACES)}")
    session: Session = context.obj
    cls = session.registry.resolve(kind, name)
    plugin = session.registry.provider(kind, name)
    fields = [_field(field, info) for field, info in cls.Config.model_fields.items()]
    if as_json:
        described = {"kind": kind, "name": name, "doc": inspect.getdoc(cls), "provider": plugin.as_dict()}
        print_json({**described, "fields": fields})
        return
    typer.echo(f"{kind}.{name}, from {plugin.provider}\n\n{inspect.getdoc(cls)}\n")
    for field in fields:
        default = "required" if field["required"] else f"default {field['default']!r}"
        typer.echo(f"{field['name']}: {field['type']}, {default}\n    {field['description']}")


def _field(name: str, info: Any) -> dict[str, Any]:
    kind = info.annotation.__name__ if isinstance(info.annotation, type) else str(info.annotation)
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    return {
        "name": name,
        "type": kind.replace("typing.", ""),
        "required": info.is_required(),
        "default": default if isinstance(default, bool | int | float | str | None) else str(default),
        "description": info.description,
    }
