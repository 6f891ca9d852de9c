"""Tests of the contract of components of every kind: the name, the Config and the plugin's hook."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, ClassVar

import pluggy
import pytest
from pydantic import ValidationError

from exfm.interfaces.component import Component, ComponentConfig
from exfm.registry.discovery import register
from exfm.registry.hooks import PROJECT, HookSpecs
from exfm.registry.registry import Plugin, Registry, check_component


class ComponentTests:
    """Tests of any component; base of the classes of its kind. Tests that take ``fields`` run for each of ``configs``.

    Attributes:
        interface: the class that the component must extend.
        component: the class under test.
        configs: fields of the component as written in YAML, without ``name``.
        plugin: the plugin module that offers the component; None skips the test of its hook.

    Raises:
        TypeError: a class called ``Test...`` does not name a component of its kind.
    """

    __test__ = False
    interface: ClassVar[type[Component]] = Component
    component: ClassVar[type[Any]]
    configs: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    plugin: ModuleType | None = None  # no ClassVar: mypy takes a module that a class names for an instance's attribute

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__test__ = cls.__name__.startswith("Test")
        component = getattr(cls, "component", None)
        if cls.__test__ and not (isinstance(component, type) and issubclass(component, cls.interface)):
            raise TypeError(
                f"{cls.__qualname__}.component must be a subclass of exfm.{cls.interface.__name__}, not {component!r}"
            )

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrizes tests by config; the id of a test has the fields that differ from the defaults."""
        if "fields" in metafunc.fixturenames:
            ids: list[str] = []
            for fields in self.configs:
                ids.append(", ".join(f"{key}={value}" for key, value in fields.items()) or "defaults")
            metafunc.parametrize("fields", self.configs, ids=ids)

    def config(self, fields: Mapping[str, Any]) -> Any:
        """Parses fields as written in YAML to a Config."""
        return self.component.Config.model_validate(dict(fields))

    def test_is_a_named_component(self) -> None:
        """The ``name``, by which users select the component, is a lower-case identifier."""
        check_component(self.component.kind, self.component)

    def test_plugin_offers_it(self) -> None:
        """The plugin's hook offers the component under its name."""
        if self.plugin is None:
            pytest.skip(f"{type(self).__name__}.plugin names no plugin module")
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(HookSpecs)
        name = self.plugin.__name__
        registry = Registry()
        registry.add(Plugin(name, name, name, "under test"), register(manager, self.plugin, name))
        offered = registry.resolve(self.component.kind, self.component.name)
        assert offered is self.component, f"{name} offers {offered} as {self.component.name!r}, not {self.component}"

    def test_config_survives_being_written_down(self, fields: Mapping[str, Any]) -> None:
        """A Config survives a round trip through JSON, because ``config.yaml`` has to repeat the run."""
        config = self.config(fields)
        written = json.loads(json.dumps(config.model_dump(mode="json")))
        again = self.config(written)
        assert again == config, f"written to JSON and read again, {config!r} became {again!r}"

    def test_defaults_are_valid(self) -> None:
        """The Config accepts the required fields alone."""
        required: dict[str, Any] = {}
        for name, field in self.component.Config.model_fields.items():
            if field.is_required() and name in self.configs[0]:
                required[name] = self.configs[0][name]
        self.config(required)

    def test_unknown_fields_are_refused(self) -> None:
        """A misspelt field is an error; ignored, it would change the run silently."""
        try:
            self.config({**self.configs[0], "no_such_field": 1})
        except ValidationError:
            return
        raise AssertionError(f"{self._config_name} takes a field it does not have; keep extra='forbid'")

    def test_config_is_immutable(self) -> None:
        """A Config cannot be changed, because a changed config would differ from the config that the run stored."""
        assert self.component.Config.model_config.get("frozen"), f"{self._config_name} can be changed; keep frozen=True"

    def test_schema_describes_every_field(self) -> None:
        """Every field has a description, which is its help in ``exfm show`` and in a YAML editor."""
        config: type[ComponentConfig] = self.component.Config
        silent = [path for path, schema in _fields(config.model_json_schema()) if not schema.get("description")]
        assert not silent, f"{self._config_name}: no description for {', '.join(silent)}; add Field(description=...)"

    @property
    def _config_name(self) -> str:
        return f"{self.component.__qualname__}.Config"


def _fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every field of a schema and of its nested models, with its path."""
    models = {"": schema} | {f"{name}.": model for name, model in schema.get("$defs", {}).items()}
    for prefix, model in models.items():
        for name, field in model.get("properties", {}).items():
            yield f"{prefix}{name}", field
