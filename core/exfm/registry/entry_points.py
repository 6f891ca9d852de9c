"""The entry points of the group ``exfm``, read from the metadata of what is installed. Nothing is imported."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions

from exfm.registry.hooks import PROJECT


@dataclass(frozen=True)
class Found:
    """An entry point and its distribution's name and version.

    Attributes:
        entry_point: None where the distribution's metadata cannot be read.
        problem: why it cannot.
    """

    distribution: str
    version: str
    entry_point: EntryPoint | None
    problem: BaseException | None = None


def find() -> list[Found]:
    """All of them, in an order that does not depend on the machine."""
    found: dict[str, list[Found]] = {}
    for distribution in distributions():
        name, version = _identity(distribution)
        if normal(name) not in found:  # of two copies on the path, the first is the one that is imported
            found[normal(name)] = list(_of(distribution, name, version))
    every = [one for of_one in found.values() for one in of_one]
    return sorted(every, key=lambda one: (one.entry_point is None, _text(one.entry_point), one.distribution))


def matches(names: Collection[str], *candidates: str) -> bool:
    """Whether one of the names is one of the candidates; ``my_plugin`` and ``my-plugin`` are one distribution."""
    return bool({normal(name) for name in names} & {normal(candidate) for candidate in candidates})


def normal(name: str) -> str:
    """A distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Name and version. ``distribution.metadata`` would parse all that every distribution says of itself."""
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except (OSError, UnicodeDecodeError):  # a damaged installation must not take the others down
        return str(getattr(distribution, "_path", "unknown")).rpartition("/")[2], "0"
    headers = text.partition("\n\n")[0]
    return _header(headers, "Name") or "unknown", _header(headers, "Version") or "0"


def _header(headers: str, name: str) -> str:
    found = re.search(rf"^{name}:(.*)$", headers, re.MULTILINE | re.IGNORECASE)
    return found[1].strip() if found else ""


def _of(distribution: Distribution, name: str, version: str) -> Iterator[Found]:
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        return
    if f"[{PROJECT}]" not in text:
        return
    try:
        entry_points = [point for point in distribution.entry_points if point.group == PROJECT]
    except Exception as error:
        yield Found(name, version, None, error)
        return
    for entry_point in entry_points:
        yield Found(name, version, entry_point)


def _text(entry_point: EntryPoint | None) -> tuple[str, str]:
    return (entry_point.name, entry_point.value) if entry_point else ("", "")
