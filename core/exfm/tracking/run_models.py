"""Describes the models of a run for trackers, from the run's config.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from exfm.config.run_files import CONTROL_SUFFIX
from exfm.mappings import without

# Keys of config.yaml that describe all models together or the installation. As parameters of a single model they
# would be noise, and longer than trackers accept.
_NOT_OF_A_MODEL = ("models", "teachers", "trackers", "versions", "components", "plugins")


@dataclass(frozen=True)
class ModelSection:
    """Holds what config.yaml says of a model. Attributes as ``exfm.events.TrackedModel``."""

    name: str
    control: str | None
    params: Mapping[str, str]


def model_sections(config: Mapping[str, Any]) -> Iterator[ModelSection]:
    """Yields the models of a resolved config, each followed by the control that exfm adds for ``control: true``."""
    shared = without(config, *_NOT_OF_A_MODEL)
    for name, model in config["models"].items():
        added_control = f"{name}{CONTROL_SUFFIX}"
        control = added_control if model["control"] is True else model["control"] or None
        yield ModelSection(name, control, dict(_by_key_path({**shared, "model": model})))
        if model["control"] is True:
            # The config has no section for an added control: it is the model's, without everything a teacher offers.
            without_teacher = {**model, "transfer": [], "inputs": (), "control": False}
            yield ModelSection(added_control, None, dict(_by_key_path({**shared, "model": without_teacher})))


def _by_key_path(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields the leaves of nested sections as text, each with its ``key.path``; an empty section is a leaf."""
    for key, value in node.items():
        key_path = f"{path}.{key}".removeprefix(".")
        if isinstance(value, Mapping) and value:
            yield from _by_key_path(value, key_path)
        elif isinstance(value, str):
            yield key_path, value
        else:
            yield key_path, json.dumps(value)
