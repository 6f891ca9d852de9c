"""`exfm show`."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Annotated, Any, Literal

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
    required = any(info.is_required() for info in cls.Config.model_fields.values())
    config = cls.Config.model_construct() if required else cls.Config()
    defaults = config.model_dump(mode="json", warnings=False)
    fields = [_field(field, info, defaults.get(field)) for field, info in cls.Config.model_fields.items()]
    # torch takes seconds to import; of what has no forward pass there is nothing to count.
    cost = None if kind not in ("backbone", "sequence_encoder") else _cost(kind, cls)
    if as_json:
        described = {"kind": kind, "name": name, "doc": inspect.getdoc(cls), "provider": plugin.as_dict()}
        print_json({**described, "fields": fields, "cost": cost})
        return
    typer.echo(f"{kind}.{name}, from {plugin.provider}\n\n{inspect.getdoc(cls)}\n")
    for field in fields:
        default = "required" if field["required"] else f"default {field['default']!r}"
        typer.echo(f"{field['name']}: {field['type']}, {default}\n    {field['description']}")
    if cost is not None:
        typer.echo(
            f"\nWith its defaults on {cost['input']}: {cost['dense_parameters']:,} dense parameters, "
            f"{cost['flops_per_example']:,} FLOPs per example forward"
        )


def _cost(kind: str, cls: type[Any]) -> dict[str, Any] | None:
    from exfm.modeling.cost import REFERENCE, reference_cost

    counted = reference_cost(kind, cls)
    return None if counted is None else {"input": REFERENCE, **counted}


def _field(name: str, info: Any, default: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": _type(info.annotation),
        "required": info.is_required(),
        "default": default,
        "description": info.description,
    }


def _type(annotation: Any) -> str:
    """An annotation in a reader's words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[1])}"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
