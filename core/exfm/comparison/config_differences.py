"""Finds the keys in which the configs of runs differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

IGNORED: Final = frozenset({"run_dir"})
"""Keys that differ between any two runs."""

ABSENT: Final = object()


def config_differences(configs: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lists the keys whose values differ, in the order of the first config.

    A section that some config lacks is a single difference.

    Args:
        configs: contents of config.yaml, by the run's label.

    Returns:
        Entries with ``key``, a key path, and ``values``, by label; a run without the key has no value.
    """
    labels = list(configs)
    differences: list[dict[str, Any]] = []
    for key, values in _differences(list(configs.values()), ""):
        if key not in IGNORED:
            present = {label: value for label, value in zip(labels, values, strict=True) if value is not ABSENT}
            differences.append({"key": key, "values": present})
    return differences


def _differences(nodes: Sequence[Any], prefix: str) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yields key path and values of each difference below a node of every config."""
    # Types too, because Python takes 1, 1.0 and True for equal.
    if all(node == nodes[0] and type(node) is type(nodes[0]) for node in nodes):
        return
    below = _children(nodes)
    if below is None:
        yield prefix, nodes
        return
    for name, children in below.items():
        yield from _differences(children, f"{prefix}.{name}" if prefix else name)


def _children(nodes: Sequence[Any]) -> dict[str, list[Any]] | None:
    """Returns the values below a node of every config by their key; None where not all of them have the same form."""
    if all(isinstance(node, Mapping) for node in nodes):
        # A dictionary, because it keeps the order of keys.
        names = dict.fromkeys(name for node in nodes for name in node)
        return {name: [node.get(name, ABSENT) for node in nodes] for name in names}
    if all(isinstance(node, list) and len(node) == len(nodes[0]) for node in nodes):
        return {str(position): list(values) for position, values in enumerate(zip(*nodes, strict=True))}
    return None
