"""Renders small tables as HTML for notebooks, which bring their styles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def html_table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Renders a table, with all text escaped."""
    lines = ["<table>"]
    if caption:
        lines.append(f"<caption>{escape(caption)}</caption>")
    lines.append(f"<thead>{_row('th', headings)}</thead><tbody>")
    lines += [_row("td", row) for row in rows]
    return "".join((*lines, "</tbody></table>"))


def _row(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
