"""Locates errors in the experiment file.

Pydantic's locations also name the alternatives of a union; the key path in a file has no such names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Location = tuple[int | str, ...]


def inside(node: Any, key: int | str) -> Any:
    """Returns the value under a key of a mapping or an index of a list; None where there is no such value."""
    if isinstance(node, dict):
        return node.get(key)
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return node[key]
    return None


@dataclass(frozen=True)
class ErrorPath:
    """An error of pydantic and the path to it.

    Attributes:
        detail: the error as pydantic describes it.
        steps: the path from the top: keys and indices of the file, and names of a union's alternatives.
        branches: for each step, whether it names an alternative.
        names_key: whether the error is in a key and not in its value.
    """

    detail: Any
    steps: Location
    branches: tuple[bool, ...]
    names_key: bool = False

    @classmethod
    def from_detail(cls, detail: Any, raw: Any) -> ErrorPath:
        """Separates keys of the file from names of alternatives: a step that the file does not have is a name."""
        steps, branches, node = detail["loc"], [], raw
        names_key = bool(steps) and steps[-1] == "[key]"
        if names_key:
            steps = steps[:-1]
        for index, step in enumerate(steps):
            last = index == len(steps) - 1
            # The last step to a missing key is a key too, although the file does not have it.
            is_key = isinstance(node, dict) and (step in node or (last and detail["type"] == "missing"))
            is_index = isinstance(node, list) and isinstance(step, int) and step < len(node)
            branches.append(not (is_key or is_index))
            if is_key or is_index:
                node = inside(node, step)
        return cls(detail, tuple(steps), tuple(branches), names_key)

    @property
    def location(self) -> Location:
        """Returns the key path in the file."""
        return tuple(step for step, branch in zip(self.steps, self.branches, strict=True) if not branch)

    @property
    def anchor(self) -> Location:
        """Returns the key path of the outermost union on the path, or the whole key path where there is none."""
        if self.branch is None:
            return self.location
        return self.steps[: self.branch]

    @property
    def branch(self) -> int | None:
        """Returns the index of the first step that names an alternative."""
        return self.branches.index(True) if True in self.branches else None

    def without(self, index: int) -> ErrorPath:
        """Copies the path without the step at an index."""
        steps, branches = list(self.steps), list(self.branches)
        del steps[index], branches[index]
        return replace(self, steps=tuple(steps), branches=tuple(branches))


def same_problem(paths: Sequence[ErrorPath]) -> list[ErrorPath]:
    """Selects the errors that describe the same problem as the first error.

    They are several where a value fits no alternative of a union. Where the value has the shape of an alternative and
    the error lies deeper inside, only the errors of that alternative are selected.
    """
    first = paths[0]
    index = first.branch
    if index is None:
        return [first]
    alternatives: dict[int | str, list[ErrorPath]] = {}
    for path in paths:
        if path.branch == index and path.steps[:index] == first.steps[:index]:
            alternatives.setdefault(path.steps[index], []).append(path)
    # An alternative's errors lie deeper where each has a key of the file below the union.
    deep: list[list[ErrorPath]] = []
    for errors in alternatives.values():
        if not any(all(path.branches[index:]) for path in errors):
            deep.append(errors)
    if deep or len(alternatives) == 1:
        # The alternative with the fewest errors is the nearest to the user's intent.
        chosen = min(deep or alternatives.values(), key=len)
        return same_problem(_unknown_keys_first([path.without(index) for path in chosen]))
    return [errors[0] for errors in alternatives.values()]


def _unknown_keys_first(paths: list[ErrorPath]) -> list[ErrorPath]:
    return sorted(paths, key=lambda path: path.detail["type"] != "extra_forbidden")
