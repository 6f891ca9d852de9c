"""Component: the base of all components, with a name and a typed configuration next to the code it configures."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class ComponentConfig(BaseModel):
    """Base of every component's ``Config``; instances are immutable, and unknown keys are errors.

    Every field has a type and a sentence (``Field(description=...)``): the sentence is the documentation, the help
    of ``exfm show`` and the hint a YAML editor displays. A field without a default is required.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Component:
    """Base of all interfaces. A component is a class with a ``name`` and a nested ``Config``.

    A user selects the component by ``name`` in YAML (``{name: wukong, layers: 3}``); the other keys are fields of
    ``Config``. ``Config`` is checked when the class is defined, because an error is then raised when the plugin is
    loaded and not in the middle of a user's run.

    Raises:
        TypeError: ``Config`` is not a ComponentConfig, or a field of it has no description.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        config = cls.Config
        if not (isinstance(config, type) and issubclass(config, ComponentConfig)):
            raise TypeError(f"{cls.__qualname__}.Config must be a subclass of exfm.ComponentConfig, not {config!r}")
        # pydantic accepts fields without a description; `exfm show` and the JSON Schema would be empty for them.
        silent = [name for name, field in config.model_fields.items() if not field.description]
        if silent:
            raise TypeError(
                f"{cls.__qualname__}.Config: no description for {', '.join(silent)}; add Field(description=...)"
            )
