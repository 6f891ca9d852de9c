"""Reads the figures of results.json that depend on the kind of a task's label, and on the metrics of the experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]


def label_kind(models: Mapping[str, Json], task: str) -> str:
    """Returns the kind of a task's label; results of before there were kinds are binary."""
    for figures in _of_task(models, task):
        if figures.get("kind"):
            return str(figures["kind"])
    return "binary"


def metric_titles(models: Mapping[str, Json], task: str) -> list[str]:
    """Lists the metrics that any model has of a task, in the order of the experiment."""
    titles: dict[str, None] = {}
    for figures in _of_task(models, task):
        titles |= dict.fromkeys(figures.get("metrics", ()))
    return list(titles)


def _of_task(models: Mapping[str, Json], task: str) -> Iterator[Json]:
    for model in models.values():
        if task in model["tasks"]:
            yield model["tasks"][task]
