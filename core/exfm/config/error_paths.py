"""Where in the file an error lies. Pydantic's locations also name the alternatives of a union; a file has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

Location = tuple[int | str, ...]


def inside(node: Any, part: int | str) -> Any:
    """A part of a mapping or a list; None where it has no such part."""
    if isinstance(node, dict):
        return node.get(part)
    return node[part] if isinstance(node, list) and isinstance(part, int) and part < len(node) else None


@dataclass(frozen=True)
class Trail:
    """One of pydantic's errors and the way to it.

    Attributes:
        detail: the error as pydantic describes it.
        steps: the way from the top: a key or index of the file, or the name of a union's alternative.
        branches: for each step, whether it is such a name.
        names_key: whether the error is in a key and not in its value.
    """

    detail: Any
    steps: Location
    branches: tuple[bool, ...]
    names_key: bool = False

    @classmethod
    def of(cls, detail: Any, raw: Any) -> Trail:
        """Tells the file's keys from the alternatives' names by looking into the file."""
        steps, branches, node = detail["loc"], [], raw
        names_key = bool(steps) and steps[-1] == "[key]"
        steps = steps[:-1] if names_key else steps
        for index, step in enumerate(steps):
            last = index == len(steps) - 1
            is_key = isinstance(node, dict) and (step in node or (last and detail["type"] == "missing"))
            is_index = isinstance(node, list) and isinstance(step, int) and step < len(node)
            branches.append(not (is_key or is_index))
            node = inside(node, step) if is_key or is_index else node
        return cls(detail, tuple(steps), tuple(branches), names_key)

    @property
    def location(self) -> Location:
        """The key path in the file."""
        return tuple(step for step, branch in zip(self.steps, self.branches, strict=True) if not branch)

    @property
    def anchor(self) -> Location:
        """The key path of the outermost union on the way, or the whole way where there is none."""
        return self.steps[: self.branch] if self.branch is not None else self.location

    @property
    def branch(self) -> int | None:
        """The first step that names an alternative."""
        return self.branches.index(True) if True in self.branches else None

    def without(self, index: int) -> Trail:
        """The same without one step."""
        steps, branches = list(self.steps), list(self.branches)
        del steps[index], branches[index]
        return replace(self, steps=tuple(steps), branches=tuple(branches))


def same_problem(trails: Sequence[Trail]) -> list[Trail]:
    """The trails that tell together what is wrong in the first one's place.

    They are more than one where a value fits no alternative of a union. Where it has the shape of one alternative and
    the error lies deeper inside, that alternative alone is reported.
    """
    first = trails[0]
    index = first.branch
    if index is None:
        return [first]
    alternatives: dict[int | str, list[Trail]] = {}
    for trail in trails:
        if trail.branch == index and trail.steps[:index] == first.steps[:index]:
            alternatives.setdefault(trail.steps[index], []).append(trail)
    deep = [of_one for of_one in alternatives.values() if all(not all(trail.branches[index:]) for trail in of_one)]
    if deep or len(alternatives) == 1:
        chosen = min(deep or alternatives.values(), key=len)
        return same_problem(_unknown_first([trail.without(index) for trail in chosen]))
    return [of_one[0] for of_one in alternatives.values()]


def _unknown_first(trails: list[Trail]) -> list[Trail]:
    return sorted(trails, key=lambda trail: trail.detail["type"] != "extra_forbidden")
