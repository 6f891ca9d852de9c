"""Reads the resolved config that a run keeps."""

from __future__ import annotations

from typing import Any

import yaml

from exfm.mappings import with_text_keys

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The loader in C where PyYAML is built with it."""


def parse_resolved(text: str) -> dict[str, Any]:
    """Parses a run's config.yaml; references to environment variables stay text.

    Plain YAML reads what OmegaConf has written: numbers have the form of YAML 1.1, and text is quoted that either of
    them would read as another type. A tree of OmegaConf's nodes would take as long as a stage of a small run.
    """
    parsed = yaml.load(text, Loader=_LOADER)
    assert isinstance(parsed, dict)
    return with_text_keys(parsed)
