"""Names versions of a model with aliases such as ``production``, and keeps the history of every alias.

Each move of an alias is a file of its own, ``aliases/MODEL/NNNNNN.json``, which is created exclusively. So a history is
appended to atomically on any file system: of two jobs that move an alias at once, both moves are kept, in an order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import chain
from typing import Literal

from exfm.config.section import NAME_PATTERN
from exfm.errors import ConfigError, RunError, suggestion
from exfm.storage.manifests import seal, unseal
from exfm.storage.workspace import Workspace

LATEST = "latest"
"""Stands for the newest published snapshot, and is no alias."""


@dataclass(frozen=True)
class AliasMove:
    """Records that an alias was moved to a version.

    Attributes:
        kind: ``rollback`` if the alias went back to a version that it had been moved to before.
        moved_at: ISO 8601, UTC.
    """

    alias: str
    version: int
    kind: Literal["promote", "rollback"]
    moved_at: str


def check_alias(alias: str) -> None:
    """Checks that an alias is a name, and means nothing else where a snapshot is named.

    Raises:
        ConfigError: it is not.
    """
    if alias == LATEST or not re.fullmatch(NAME_PATTERN, alias):
        raise ConfigError(
            f"--alias: a letter, then letters, digits, _ and -, and not {LATEST!r}, which is the newest published "
            f"snapshot; given: {alias!r}"
        )


class Aliases:
    """Reads and moves the aliases of the models of a run."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        # Never stale, because a file of a move does not change; later moves are read by their number.
        self._moves: dict[str, list[AliasMove]] = {}

    def moves(self, model: str) -> list[AliasMove]:
        """Returns the moves of a model's aliases, oldest first.

        Raises:
            RunError: the file of a move is damaged.
        """
        moves = self._moves.setdefault(model, [])
        # By number and not from a listing, which may lack the newest.
        while True:
            path = _path(model, len(moves))
            try:
                raw = unseal(self.workspace.read(path))
                if raw is None:
                    raise ValueError("it is truncated")
                moves.append(AliasMove(**raw))
            except FileNotFoundError:
                return moves
            except (ValueError, TypeError) as error:
                raise RunError(
                    f"{self.workspace.name(path)}: damaged: {error}. Remove it and those after it: the aliases of "
                    f"{model!r} are then as they were before; `exfm promote` moves them again"
                ) from error

    def targets(self, model: str) -> dict[str, list[int]]:
        """Returns by alias the versions it was promoted to, oldest first and without those it was rolled back from.

        An alias points at the last of its versions.
        """
        targets: dict[str, list[int]] = {}
        for move in self.moves(model):
            versions = targets.setdefault(move.alias, [])
            if move.kind == "rollback":
                while versions[-1] != move.version:
                    versions.pop()
            elif versions[-1:] != [move.version]:
                versions.append(move.version)
        return targets

    def versions(self, model: str) -> set[int]:
        """Returns the versions that an alias points at, or can be rolled back to; they are not retired."""
        return set(chain.from_iterable(self.targets(model).values()))

    def names(self, model: str) -> dict[int, list[str]]:
        """Returns the aliases that point at each version."""
        names: dict[int, list[str]] = {}
        for alias, versions in sorted(self.targets(model).items()):
            names.setdefault(versions[-1], []).append(alias)
        return names

    def promote(self, model: str, alias: str, version: int) -> None:
        """Moves an alias to a version."""
        while not self._append(model, AliasMove(alias, version, "promote", _now())):
            pass  # another job has moved an alias meanwhile: this move comes after it

    def rollback(self, model: str, alias: str, is_good: Callable[[str, int], bool]) -> tuple[int, int]:
        """Moves an alias back to the newest good version among those it was promoted to before.

        Args:
            is_good: tells of a model and a version whether readers may use it.

        Returns:
            The versions that it pointed at, and points at now.

        Raises:
            ConfigError: there is no such alias, or no such version.
        """
        while True:
            count, targets = len(self.moves(model)), self.targets(model)
            versions = targets.get(alias, [])
            earlier = [version for version in versions[:-1] if version != versions[-1] and is_good(model, version)]
            if not earlier:
                raise ConfigError(f"{self.workspace.url}: {_no_earlier(model, alias, targets)}")
            if self._append(model, AliasMove(alias, earlier[-1], "rollback", _now()), count):
                return versions[-1], earlier[-1]

    def _append(self, model: str, move: AliasMove, number: int | None = None) -> bool:
        """Appends a move, as the next or with a number; returns False if there is a move with that number."""
        if number is None:
            number = len(self.moves(model))
        return self.workspace.create(_path(model, number), seal(asdict(move)))


def _no_earlier(model: str, alias: str, targets: Mapping[str, list[int]]) -> str:
    if alias not in targets:
        return f"no snapshot of {model!r} has the alias {alias!r}.{suggestion(alias, targets)}"
    *earlier, current = targets[alias]
    before = ", ".join(map(str, earlier)) or "none"
    return (
        f"{alias!r} of {model!r} points at snapshot {current}, and no good one that it was promoted to before is still "
        f"stored; before: {before}"
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _path(model: str, number: int) -> str:
    return f"aliases/{model}/{number:06d}.json"
