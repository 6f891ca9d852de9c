"""Lists the snapshots that a gate has held back, for results.json, its notes and the report."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise
from typing import Any

from exfm.config.checks import Arm
from exfm.storage.commits import Commit


def held_windows(arm: Arm, commits: Sequence[Commit]) -> list[dict[str, Any]]:
    """Describes each window of a model whose snapshot is held: the window, and the reasons by task."""
    entries: list[dict[str, Any]] = []
    for commit in commits:
        held = commit.counters.get("held")  # none in windows of exfm before it had gates
        if held:
            entry = {"model": arm.name, "window": commit.window.index, "start": str(commit.window), "reasons": held}
            entries.append(entry)
    return entries


def held_notes(arm: Arm, commits: Sequence[Commit], teachers: Collection[str]) -> Iterator[str]:
    """Yields a sentence for each held snapshot of a model, and for the windows in which a held model taught nobody.

    Args:
        commits: of the model's training, in order.
        teachers: the models that others learn from.
    """
    for entry in held_windows(arm, commits):
        yield f"{arm.name}: the snapshot after window {entry['start']} is held: {'; '.join(entry['reasons'].values())}"
    # With a delay, a labeller reads the published snapshot before the held ones, so that there are no misses.
    if arm.name not in teachers or arm.config.supervision.delay:
        return
    silent = [str(after.window) for before, after in pairwise(commits) if before.counters.get("held")]
    if silent:
        yield f"{arm.name}: it taught nobody in windows {', '.join(silent)}, since the snapshot before each is held"
