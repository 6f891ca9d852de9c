"""Derives mappings from mappings, and lists from records."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

K = TypeVar("K")
V = TypeVar("V")
W = TypeVar("W")


R = TypeVar("R", bound=Mapping[str, Any])


class Named(Protocol):
    """Anything with a name."""

    @property
    def name(self) -> str:
        """Returns the name."""


N = TypeVar("N", bound=Named)


def by_name(items: Iterable[N]) -> dict[str, N]:
    """Maps the name of each item to the item."""
    return {item.name: item for item in items}


def names_of(items: Iterable[Named]) -> list[str]:
    """Lists the name of each item."""
    return [item.name for item in items]


def map_values(function: Callable[[V], W], mapping: Mapping[K, V]) -> dict[K, W]:
    """Applies a function to each value."""
    return {key: function(value) for key, value in mapping.items()}


def take_rows(columns: Mapping[K, V], rows: Any) -> dict[K, V]:
    """Indexes each column, a tensor or an array, by the same slice or positions."""
    return {key: column[rows] for key, column in columns.items()}  # type: ignore[index]  # of tensors and arrays alike


def without(mapping: Mapping[K, V], *keys: K) -> dict[K, V]:
    """Leaves keys out, if they are there."""
    left_out = set(keys)
    return {key: value for key, value in mapping.items() if key not in left_out}


def add_prefix(prefix: str, mapping: Mapping[Any, V]) -> dict[str, V]:
    """Puts a prefix before each key."""
    return {f"{prefix}{key}": value for key, value in mapping.items()}


def strip_prefix(prefix: str, mapping: Mapping[str, V]) -> dict[str, V]:
    """Selects the keys that begin with a prefix, and removes it from them."""
    return {key.removeprefix(prefix): value for key, value in mapping.items() if key.startswith(prefix)}


def with_text_keys(mapping: Mapping[Any, V]) -> dict[str, V]:
    """Turns each key into text, as YAML has keys that are numbers or dates."""
    return {str(key): value for key, value in mapping.items()}


def defined(values: Iterable[V | None]) -> list[V]:
    """Leaves out the values that are None."""
    return [value for value in values if value is not None]


def records_with(records: Iterable[R], key: str) -> list[R]:
    """Leaves out the records that have None under a key."""
    return [record for record in records if record[key] is not None]


def values_at(records: Iterable[Mapping[str, Any]], key: str) -> list[Any]:
    """Lists the values that records have under a key."""
    return [record[key] for record in records]
