"""Builds the JSON Schema of the experiment file, with the fields of every installed plugin and their descriptions."""

from __future__ import annotations

import inspect
from typing import Any

from pydantic import PydanticUserError
from pydantic.json_schema import GenerateJsonSchema

from exfm.config.component_field import SCHEMA_MARK
from exfm.config.experiment import ExperimentConfig
from exfm.errors import PluginError
from exfm.registry.hooks import INTERFACES
from exfm.registry.registry import Registry


def experiment_schema(registry: Registry) -> dict[str, Any]:
    """Builds the schema with which a YAML editor completes and checks an experiment file (draft 2020-12)."""
    schema = ExperimentConfig.model_json_schema()
    schema["$schema"] = GenerateJsonSchema.schema_dialect
    schema["title"] = "exfm experiment"
    # Loading fills in the default plan, which depends on the installed plugins.
    schema["required"] = [key for key in schema["required"] if key != "parallel"]
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for kind in INTERFACES:
        names, choices = [], []
        for name in registry.names(kind):
            try:
                component = component_schema(registry, kind, name, definitions)
            except (PluginError, PydanticUserError):
                # A component that cannot be used is left out; `exfm show` says why.
                continue
            definitions[f"{kind}.{name}"] = component
            names.append(component["properties"]["name"])
            choices.append({"$ref": f"#/$defs/{kind}.{name}"})
        # An editor offers no choice that lacks a required field; the names by themselves it offers always.
        if names:
            definitions[kind] = {"properties": {"name": {"anyOf": names}}, "oneOf": choices}
        else:
            definitions[kind] = {"not": {}}
    linked = _link(schema)
    assert isinstance(linked, dict)
    return linked


def component_schema(registry: Registry, kind: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """Builds the schema of a component.

    Definitions that its Config refers to are added to ``definitions`` with the component's name as prefix, because two
    plugins may define classes of the same name.
    """
    component = registry.resolve(kind, name)
    schema: dict[str, Any] = component.Config.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
    for key, value in schema.pop("$defs", {}).items():
        definitions[f"{kind}.{name}.{key}"] = value
    # A first line may introduce an example.
    first = (inspect.getdoc(component) or name).splitlines()[0].removesuffix("::")
    schema["title"] = name
    schema["description"] = first
    schema["properties"] = {"name": {"const": name, "description": first}, **schema.get("properties", {})}
    schema["required"] = ["name", *schema.get("required", [])]
    schema["type"] = "object"
    return schema


def _link(node: Any) -> Any:
    """Replaces the marks of the raw schema by references to the installed components."""
    if isinstance(node, list):
        return list(map(_link, node))
    if not isinstance(node, dict):
        return node
    linked = {key: _link(value) for key, value in node.items() if key != SCHEMA_MARK}
    if SCHEMA_MARK in node:
        linked["$ref"] = f"#/$defs/{node[SCHEMA_MARK]}"
    return linked
