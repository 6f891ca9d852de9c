"""Follows the deltas of a model's snapshots to the snapshots before them, by the manifests of their windows."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from exfm.storage.commits import CommitLog
from exfm.storage.delta import Delta


def links(log: CommitLog, model: str, version: int) -> Iterator[int]:
    """Yields the snapshots that a snapshot is put together from, newest first: itself, in the end a full snapshot."""
    follow: int | None = version
    while follow is not None and log.has("train", model, follow):
        yield follow
        delta = Delta.from_counters(log.load("train", model, follow).counters)
        follow = None if delta is None else delta.after


def linked(log: CommitLog, model: str, versions: Collection[int]) -> set[int]:
    """Returns all snapshots that some snapshots are put together from."""
    needed: set[int] = set()
    # Newest first: a snapshot that another leads to has been followed to its end with it.
    for version in sorted(versions, reverse=True):
        for link in links(log, model, version):
            if link in needed:
                break
            needed.add(link)
    return needed


def stand_in(log: CommitLog, model: str, stored: Collection[int]) -> set[int]:
    """Returns the newest snapshot that can be read where the full snapshot that the newest needs is damaged."""
    if not stored:
        return set()
    full = min(links(log, model, max(stored)), default=max(stored))
    return set(sorted(version for version in stored if version < full)[-1:])
