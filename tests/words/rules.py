"""Reads the list of words, and compares folders of Python files and Markdown pages with it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.words.counting import Counts, Hit, SourceText

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("words.toml")
FOLDER_DEPTHS = {"core": 3, "plugins": 3, "examples": 2, "tests": 2, "benchmarks": 2, "docs": 2}
"""How many names deep the folders are that have a ceiling, by the folder at the top."""
PAGES_AT_THE_TOP = "."
"""The folder that the pages outside all folders are counted in."""


@dataclass(frozen=True)
class Rules:
    """The list of words, as ``words.toml`` explains it."""

    names: tuple[str, ...]
    allowed: frozenset[str]
    phrases: tuple[str, ...]
    slack: int
    per_10_000: Mapping[str, int]
    ceilings: Mapping[str, Mapping[str, int]]

    @classmethod
    def read(cls, text: str) -> Rules:
        """Reads the text of ``words.toml``."""
        keys: dict[str, Any] = tomllib.loads(text)
        return cls(
            names=tuple(keys["names"]),
            allowed=frozenset(keys["allowed"]),
            phrases=tuple(keys["phrases"]),
            slack=keys["slack"],
            per_10_000=keys["per_10_000"],
            ceilings=keys["ceilings"],
        )

    @property
    def kinds(self) -> list[str]:
        """All kinds of hits that have a limit."""
        return ["names", *self.per_10_000]

    def hits(self, path: str, text: SourceText) -> list[Hit]:
        """Lists the hits of a file that are not allowed."""
        words = [word for word in self.per_10_000 if word != "phrases"]
        hits = text.hits(self.names, words, self.phrases)
        return [hit for hit in hits if hit.kind != "names" or f"{path}: {hit.text}" not in self.allowed]

    def limit(self, kind: str, words: int) -> int:
        """Returns how many hits of a kind a folder may have that has so many words of prose."""
        if kind == "names":
            return 0
        return max(1, round(self.per_10_000[kind] * words / 10_000))

    def problems(self, folder: str, counts: Counts) -> Iterator[str]:
        """Yields a sentence for each kind that is above its limit or ceiling, or whose ceiling is too high."""
        for kind in self.kinds:
            total, limit = counts.kinds[kind], self.limit(kind, counts.words)
            ceiling = self.ceilings.get(folder, {}).get(kind, 0)
            if total > max(limit, ceiling):
                yield f"{folder}: {kind}: {total}, at most {max(limit, ceiling)} (python -m tests.words {folder})"
            elif ceiling > max(total, limit) + self.slack:
                yield f"{folder}: {kind}: {total}, and a ceiling of {ceiling} (python -m tests.words --write)"

    def ceilings_of(self, counted: Mapping[str, Counts]) -> str:
        """Writes the ceilings that folders need which are above their limits."""
        rows: list[str] = []
        for folder, counts in sorted(counted.items()):
            above = [kind for kind in self.kinds if counts.kinds[kind] > self.limit(kind, counts.words)]
            if above:
                rows.append(f'"{folder}" = {{ {", ".join(f"{kind} = {counts.kinds[kind]}" for kind in above)} }}\n')
        return "".join(rows)


def sources() -> Iterator[tuple[str, SourceText]]:
    """Yields every Python file and Markdown page that is checked, and its path below the root."""
    for path in sorted(ROOT.glob("*.md")):
        yield path.name, SourceText.from_markdown(path.read_text(encoding="utf-8"))
    for top in FOLDER_DEPTHS:
        for path in sorted([*(ROOT / top).rglob("*.py"), *(ROOT / top).rglob("*.md")]):
            if not any(name.startswith(".") for name in path.relative_to(ROOT).parts):
                read = SourceText.from_python if path.suffix == ".py" else SourceText.from_markdown
                yield path.relative_to(ROOT).as_posix(), read(path.read_text(encoding="utf-8"))


def folder_of(path: str) -> str:
    """Returns the folder that a file is counted in."""
    parents = path.split("/")[:-1]
    if not parents:
        return PAGES_AT_THE_TOP
    return "/".join(parents[: FOLDER_DEPTHS[parents[0]]])


def count_folders(rules: Rules) -> dict[str, Counts]:
    """Counts every folder."""
    counted: dict[str, Counts] = {}
    for path, text in sources():
        counted.setdefault(folder_of(path), Counts()).add(text.count(rules.hits(path, text)))
    return counted
