"""Other names for features, sequences and tasks, which a set iterates in another order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from itertools import count as numbers
from typing import Any

_RENAMINGS = 2
_MAX_TRIES = 1000
"""Numbers tried for names that change the order; the hashes of strings differ between processes."""


def renamings(*groups: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields a suffix and the suffixed names for some groups of names, such that a set of a group has another order.

    The name ``dense`` and the names of summaries of sequences have a meaning, so they stay.
    """
    every = [name for name in chain.from_iterable(groups) if name != "dense" and ":" not in name]
    count = 0
    for number in numbers():
        names = {name: f"{name}_{number}" for name in every}
        # A group of a single name has a single order.
        reordered = all(_order(group, names) != _order(group, {}) for group in groups if len(group) > 1)
        if reordered or number > _MAX_TRIES:
            yield f"_{number}", names
            count += 1
        if count == _RENAMINGS:
            return


def renamed_group(group: Sequence[str], names: Mapping[str, str]) -> tuple[str, ...]:
    """Replaces the names of a group that have another name."""
    return tuple(names.get(name, name) for name in group)


def _order(group: Sequence[str], names: Mapping[str, str]) -> list[int]:
    """Returns the indices of a group's names in the order in which a set of them is iterated."""
    renamed = renamed_group(group, names)
    return list(map(renamed.index, set(renamed)))


def with_names(fields: Any, names: Mapping[str, str]) -> Any:
    """Replaces names, as keys and as values, in fields as written in YAML."""
    if isinstance(fields, str):
        return names.get(fields, fields)
    if isinstance(fields, Mapping):
        return {names.get(key, key): with_names(value, names) for key, value in fields.items()}
    if isinstance(fields, list | tuple):
        return [with_names(value, names) for value in fields]
    return fields
