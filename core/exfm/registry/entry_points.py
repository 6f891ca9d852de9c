"""Reads the entry points of the group ``exfm`` from the metadata of installed distributions, without an import."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, EntryPoint, distributions

from exfm.registry.hooks import PROJECT


@dataclass(frozen=True)
class PluginEntryPoint:
    """An entry point with its distribution's name and version.

    Attributes:
        entry_point: None where the distribution's metadata cannot be read.
        problem: the exception while reading the metadata.
    """

    distribution: str
    version: str
    entry_point: EntryPoint | None
    problem: BaseException | None = None


def find() -> list[PluginEntryPoint]:
    """Finds all entry points of exfm, in an order that does not depend on the machine."""
    points: list[PluginEntryPoint] = []
    visited: set[str] = set()
    for distribution in distributions():
        name, version = _folder_name(distribution), "0"
        is_plugin = _has_entry_points(distribution)
        # Of other distributions the folder's name suffices, because reading the metadata of hundreds takes long.
        if is_plugin or not name:
            name, version = _identity(distribution)
        # Python imports the first of two copies on the path.
        if normal(name) not in visited:
            visited.add(normal(name))
            if is_plugin:
                points += _read_entry_points(distribution, name, version)
    return sorted(points, key=_sort_key)


def matches(names: Collection[str], *candidates: str) -> bool:
    """Tells whether any of the names is a candidate; ``my_plugin`` and ``my-plugin`` are the same distribution."""
    return not set(map(normal, names)).isdisjoint(map(normal, candidates))


def normal(name: str) -> str:
    """Returns a distribution's name in its normal form (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _folder_name(distribution: Distribution) -> str:
    """Returns NAME of a distribution in a folder NAME-VERSION.dist-info or NAME.egg-info; empty if it has no folder."""
    folder = str(getattr(distribution, "_path", "")).rpartition("/")[2]
    stem, dot, _ = folder.rpartition(".")
    return stem.partition("-")[0] if dot else ""


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Reads name and version of a distribution."""
    # Not distribution.metadata, because it would parse the whole description of every distribution.
    try:
        text = distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or ""
    except (OSError, UnicodeDecodeError):
        # A damaged installation must not hide the others; the name of its folder identifies it.
        return str(getattr(distribution, "_path", "unknown")).rpartition("/")[2], "0"
    headers = text.partition("\n\n")[0]
    return _header(headers, "Name") or "unknown", _header(headers, "Version") or "0"


def _header(headers: str, name: str) -> str:
    match = re.search(rf"^{name}:(.*)$", headers, re.MULTILINE | re.IGNORECASE)
    return match[1].strip() if match else ""


def _has_entry_points(distribution: Distribution) -> bool:
    """Tells whether a distribution has entry points of exfm."""
    try:
        text = distribution.read_text("entry_points.txt") or ""
    except (OSError, UnicodeDecodeError):
        # Unreadable, and there is no sign that it is a plugin of exfm.
        return False
    return f"[{PROJECT}]" in text


def _read_entry_points(distribution: Distribution, name: str, version: str) -> Iterator[PluginEntryPoint]:
    """Yields the entry points of a distribution that are exfm's."""
    try:
        entry_points = [point for point in distribution.entry_points if point.group == PROJECT]
    except Exception as error:
        # A malformed file is reported as a broken plugin.
        yield PluginEntryPoint(name, version, None, error)
        return
    for entry_point in entry_points:
        yield PluginEntryPoint(name, version, entry_point)


def _sort_key(point: PluginEntryPoint) -> tuple[bool, str, str, str]:
    if point.entry_point is None:
        return True, "", "", point.distribution
    return False, point.entry_point.name, point.entry_point.value, point.distribution
