"""What every component has in common: a name, and a typed configuration next to the code it configures."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict


class ComponentConfig(BaseModel):
    """Base of every component's ``Config``: immutable, and unknown keys are errors.

    Every field has a type and a sentence (``Field(description=...)``): the sentence is the documentation, the help
    of ``exfm show`` and the hint a YAML editor displays. A field without a default is required.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Component:
    """Base of the five interfaces. A component is a class with a ``name`` and a nested ``Config``.

    ``name`` is what a user writes in YAML (``{name: wukong, layers: 3}``); the other keys are ``Config``'s fields.
    The shape of ``Config`` is checked when the class is defined, so that a mistake shows when the plugin is loaded
    and not when a user's run reaches it.

    Raises:
        TypeError: ``Config`` is not a ComponentConfig, or one of its fields lacks its sentence.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    Config: ClassVar[type[ComponentConfig]] = ComponentConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        config = cls.Config
        if not (isinstance(config, type) and issubclass(config, ComponentConfig)):
            raise TypeError(f"{cls.__qualname__}.Config must be a subclass of exfm.ComponentConfig, not {config!r}")
        silent = [name for name, field in config.model_fields.items() if not field.description]
        if silent:
            raise TypeError(
                f"{cls.__qualname__}.Config: no description for {', '.join(silent)}; add Field(description=...)"
            )
