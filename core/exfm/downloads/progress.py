"""Defines the listener of a download while it runs."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Shows how far a download is."""

    def begin(self, label: str, done: int, total: int | None) -> None:
        """Begins to show a step, of which ``done`` of ``total`` bytes are done; ends the step before it."""

    def advance(self, size: int) -> None:
        """Adds bytes to the present step."""

    def say(self, line: str) -> None:
        """Prints a line."""


def size_text(size: int | None) -> str:
    """Writes a number of bytes in decimal units, such as 5.9 MB."""
    if size is None:
        return "size not published"
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"
