"""Descriptions of exports without files, for tests of what reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from exfm.serving.description import Description, input_specs


def description_of(features: Any, columns: Mapping[str, str], tasks: Iterable[str], **fields: Any) -> Description:
    """Describes a model of these features, columns and tasks; ``fields`` of `Description` replace others."""
    outputs = tuple({"name": task, "dtype": "float32", "shape": ("B",), "holds": ""} for task in tasks)
    values = {
        "graph": "",
        "experiment": "e",
        "model": "vm",
        "snapshot": 0,
        "watermark": datetime(2026, 1, 1, tzinfo=UTC),
        "versions": {},
        "columns": dict(columns),
        "features": features,
        "inputs": tuple(input_specs(features, {})),
        "outputs": outputs,
        "files": {},
    }
    return Description(**{**values, **fields})
