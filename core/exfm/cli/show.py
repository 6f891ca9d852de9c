"""`exfm show`."""

from __future__ import annotations

import inspect
import types
import typing
from typing import Annotated, Any, Literal

import typer
from pydantic import BaseModel

from exfm.cli.context import Session, print_json
from exfm.config.component_field import ComponentField
from exfm.errors import ConfigError, suggestion
from exfm.registry.hooks import INTERFACES
from exfm.registry.registry import Registry


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
    described = describe(session.registry, kind, name)
    if as_json:
        print_json(described)
        return
    typer.echo(f"{kind}.{name}, from {session.registry.provider(kind, name).provider}\n\n{described['doc']}\n")
    for field in described["fields"]:
        default = "required" if field["required"] else f"default {field['default']!r}"
        typer.echo(f"{field['name']}: {field['type']}, {default}\n    {field['description']}")
    cost = described["cost"]
    if cost is not None:
        typer.echo(
            f"\nWith its defaults on {cost['input']}: {cost['dense_parameters']:,} dense parameters, "
            f"{cost['flops_per_example']:,} FLOPs per example forward"
        )


def describe(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """What ``--json`` prints."""
    cls = registry.resolve(kind, name)
    return {
        "kind": kind,
        "name": name,
        "doc": inspect.getdoc(cls),
        "provider": registry.provider(kind, name).as_dict(),
        "fields": describe_fields(cls.Config),
        # torch takes seconds to import; of what has no forward pass there is nothing to count.
        "cost": None if kind not in ("backbone", "sequence_encoder") else _cost(kind, cls),
    }


def describe_fields(config: type[BaseModel]) -> list[dict[str, Any]]:
    """Name, type, default and sentence of every field."""
    required = any(info.is_required() for info in config.model_fields.values())
    defaults = (config.model_construct() if required else config()).model_dump(mode="json", warnings=False)
    return [_field(field, info, defaults.get(field)) for field, info in config.model_fields.items()]


def _cost(kind: str, cls: type[Any]) -> dict[str, Any] | None:
    from exfm.modeling.cost import REFERENCE, reference_cost

    counted = reference_cost(kind, cls)
    return None if counted is None else {"input": REFERENCE, **counted}


def _field(name: str, info: Any, default: Any) -> dict[str, Any]:
    return {
        "name": name,
        "type": _type(Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation),
        "required": info.is_required(),
        "default": default,
        "description": info.description,
    }


def _type(annotation: Any) -> str:
    """An annotation in a reader's words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        held = [mark.kind for mark in arguments[1:] if isinstance(mark, ComponentField)]
        return f"component of kind {held[0]}" if held else _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(_type(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[1])}"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
