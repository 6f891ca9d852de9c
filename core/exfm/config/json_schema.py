"""JSON Schema of the experiment file, with every installed plugin's fields and their sentences."""

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
    """The schema a YAML editor completes and checks an experiment file with (draft 2020-12)."""
    schema = ExperimentConfig.model_json_schema()
    schema["$schema"] = GenerateJsonSchema.schema_dialect
    schema["title"] = "exfm experiment"
    schema["required"] = [key for key in schema["required"] if key != "parallel"]
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    for kind in INTERFACES:
        names, choices = [], []
        for name in registry.names(kind):
            try:
                component = component_schema(registry, kind, name, definitions)
            except (PluginError, PydanticUserError):
                continue  # `exfm show` says why; the schema offers what can be used
            definitions[f"{kind}.{name}"] = component
            names.append(component["properties"]["name"])
            choices.append({"$ref": f"#/$defs/{kind}.{name}"})
        # An editor offers no choice that lacks a required field; the names by themselves it offers always.
        definitions[kind] = {"properties": {"name": {"anyOf": names}}, "oneOf": choices} if names else {"not": {}}
    linked = _link(schema)
    assert isinstance(linked, dict)
    return linked


def component_schema(registry: Registry, kind: str, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    """One component's schema; what its Config refers to is added to ``definitions`` under names of its own."""
    component = registry.resolve(kind, name)
    schema: dict[str, Any] = component.Config.model_json_schema(ref_template=f"#/$defs/{kind}.{name}.{{model}}")
    for key, value in schema.pop("$defs", {}).items():
        definitions[f"{kind}.{name}.{key}"] = value
    first = (inspect.getdoc(component) or name).splitlines()[0].removesuffix("::")
    schema["title"] = name
    schema["description"] = first
    schema["properties"] = {"name": {"const": name, "description": first}, **schema.get("properties", {})}
    schema["required"] = ["name", *schema.get("required", [])]
    schema["type"] = "object"
    return schema


def _link(node: Any) -> Any:
    """Puts references to the installed components where the raw schema has marks."""
    if isinstance(node, list):
        return [_link(item) for item in node]
    if not isinstance(node, dict):
        return node
    linked = {key: _link(value) for key, value in node.items() if key != SCHEMA_MARK}
    if SCHEMA_MARK in node:
        linked["$ref"] = f"#/$defs/{node[SCHEMA_MARK]}"
    return linked
