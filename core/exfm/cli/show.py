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
    """Shows a component's documentation, its fields with defaults, and its cost."""
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
    """Describes a component as ``--json`` prints it."""
    cls = registry.resolve(kind, name)
    cost = None
    # The import of torch takes seconds, and components of other kinds have no forward pass.
    if kind in ("backbone", "sequence_encoder"):
        cost = _reference_cost(kind, cls)
    return {
        "kind": kind,
        "name": name,
        "doc": inspect.getdoc(cls),
        "provider": registry.provider(kind, name).as_dict(),
        "fields": describe_fields(cls.Config),
        "cost": cost,
    }


def describe_fields(config: type[BaseModel]) -> list[dict[str, Any]]:
    """Describes name, type, default and sentence of every field."""
    # Validated where possible, because a validator may compute defaults; without required fields that is not possible.
    if any(info.is_required() for info in config.model_fields.values()):
        defaults = config.model_construct().model_dump(mode="json", warnings=False)
    else:
        defaults = config().model_dump(mode="json", warnings=False)
    return [_field(field, info, defaults.get(field)) for field, info in config.model_fields.items()]


def _reference_cost(kind: str, cls: type[Any]) -> dict[str, Any] | None:
    from exfm.modeling.cost import REFERENCE, reference_cost

    cost = reference_cost(kind, cls)
    if cost is None:
        return None
    return {"input": REFERENCE, **cost}


def _field(name: str, info: Any, default: Any) -> dict[str, Any]:
    annotation = info.annotation
    # pydantic splits an annotation and its metadata, and the metadata name the kind of a component.
    if info.metadata:
        annotation = Annotated[annotation, *info.metadata]
    return {
        "name": name,
        "type": _type(annotation),
        "required": info.is_required(),
        "default": default,
        "description": info.description,
    }


def _type(annotation: Any) -> str:
    """Formats an annotation for readers who do not write Python."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        for mark in arguments[1:]:
            if isinstance(mark, ComponentField):
                return f"component of kind {mark.kind}"
        return _type(arguments[0])
    if origin is Literal:
        return " | ".join(map(repr, arguments))
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_type, arguments))
    if origin in (tuple, list):
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"mapping of {_type(arguments[1])}"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)
