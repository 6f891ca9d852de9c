"""Defines Config fields that hold another component, written ``{name: NAME, field: value}`` in YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from exfm.errors import PluginError
from exfm.interfaces.component import ComponentConfig
from exfm.mappings import without
from exfm.registry.discovery import default_registry

SCHEMA_MARK = "x-exfm-component"
"""Key of a component field in a raw JSON Schema, which ``json_schema`` replaces by the installed components."""


@dataclass(frozen=True)
class ComponentSpec:
    """A component with its checked config, ready to be built.

    Attributes:
        component: its class.
        config: an instance of the class's ``Config``.
    """

    kind: str
    name: str
    component: type[Any]
    config: Any

    def build(self, *inputs: Any) -> Any:
        """Builds the component from its config and the further inputs of its interface's constructor."""
        return self.component(self.config, *inputs)

    def as_dict(self) -> dict[str, Any]:
        """Returns the component as a user would write it, with every default filled in."""
        return {"name": self.name, **self.config.model_dump(mode="json")}


@dataclass(frozen=True)
class ComponentField:
    """Marks a Config field: ``interaction: Annotated[ComponentSpec, ComponentField("backbone")]``.

    The name selects the Config class that checks the remaining keys.
    """

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(ComponentSpec.as_dict),
        )

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {SCHEMA_MARK: self.kind}

    def _validate(self, value: Any, info: ValidationInfo) -> ComponentSpec:
        if isinstance(value, ComponentSpec):
            return value
        # A Config that is validated on its own, as in a test or a notebook, has no context.
        registry = (info.context or {}).get("registry") or default_registry()
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            allowed = ", ".join(registry.names(self.kind)) or "none is installed"
            reason = f"a {self.kind} is written {{name: NAME, field: value}}, NAME one of: {allowed}"
            # The text is an argument, because pydantic would read its braces as a template.
            raise PydanticCustomError("component", "{reason}", {"reason": reason})
        try:
            component = registry.resolve(self.kind, value["name"])
        except PluginError as error:
            raise PydanticCustomError("component_name", "{reason}", {"reason": str(error)}) from error
        fields = without(value, "name")
        config: ComponentConfig = component.Config.model_validate(fields, context=info.context)
        return ComponentSpec(self.kind, value["name"], component, config)
