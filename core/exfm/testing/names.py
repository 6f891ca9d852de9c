"""Other names for features, sequences and tasks, which a set has in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import count as numbers
from typing import Any

_RENAMINGS = 2
_MOST_TRIES = 1000


def renamings(*groups: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields other names for some groups of names, and what they end in; a set has each group in another order.

    The names of all dense features' token and of summaries of sequences have a meaning, and stay.
    """
    every = [name for group in groups for name in group if name != "dense" and ":" not in name]
    count = 0
    for number in numbers():
        names = {name: f"{name}_{number}" for name in every}
        turned = all(_order(group, names) != _order(group, {}) for group in groups if len(group) > 1)
        if turned or number > _MOST_TRIES:
            yield f"_{number}", names
            count += 1
        if count == _RENAMINGS:
            return


def _order(group: Sequence[str], names: Mapping[str, str]) -> list[int]:
    """The places of a group's names in the order in which a set of them is gone through."""
    renamed = [names.get(name, name) for name in group]
    return [renamed.index(name) for name in set(renamed)]


def with_names(fields: Any, names: Mapping[str, str]) -> Any:
    """Fields as written in YAML, with other names wherever they have one of these."""
    if isinstance(fields, str):
        return names.get(fields, fields)
    if isinstance(fields, Mapping):
        return {names.get(key, key): with_names(value, names) for key, value in fields.items()}
    return [with_names(value, names) for value in fields] if isinstance(fields, list | tuple) else fields
