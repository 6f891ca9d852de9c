"""Reads the resolved config that a run keeps."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf


def parse_resolved(text: str) -> dict[str, Any]:
    """Parses a run's config.yaml.

    OmegaConf limits the nodes of a YAML text as a defence against hostile files. There is no limit here, because exfm
    wrote the text, and a run of some hundred models exceeds the limit.
    """
    parsed = OmegaConf.to_container(OmegaConf.create(text, max_yaml_expanded_nodes=None))
    assert isinstance(parsed, dict)
    return {str(key): value for key, value in parsed.items()}
