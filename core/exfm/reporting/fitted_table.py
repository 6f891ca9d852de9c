"""A table for a terminal of any width: what does not fit beside the names follows below, and no name is broken."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

_INDENT = 2


@dataclass
class FittedTable:
    """Rows that begin with names, and figures to the right of them.

    Where the figures do not fit in the console's width, they are spread over several tables, each with the names. Where
    the names leave no room for a figure, they stand on lines of their own.

    Attributes:
        names: the headings of the names.
        figures: the headings of the figures.
        notes: lines below the table.
    """

    title: str
    names: Sequence[str]
    figures: Sequence[str]
    notes: Sequence[str] = ()
    rows: list[tuple[tuple[str, ...], tuple[Text, ...]]] = field(default_factory=list)

    def add_row(self, names: Sequence[str], figures: Sequence[Text | str]) -> None:
        """Adds a row; a name that is that of the row above is shown once."""
        cells = (one if isinstance(one, Text) else Text(one) for one in figures)
        self.rows.append((tuple(names), tuple(cells)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yields the tables that fit, and the notes."""
        yield Text(self.title, style="table.title")
        columns = range(len(self.figures))
        widths = [max(cell_len(text) for text in self._column(number)) for number in columns]
        names_width = sum(max(cell_len(text) + 1 for text in self._names(place)) for place in range(len(self.names)))
        beside = names_width + max(widths) <= options.max_width
        for block in _blocks(widths, options.max_width - (names_width if beside else _INDENT)):
            if block[0]:
                yield Text()
            rows = [row for row in self.rows if block[0] == 0 or any(row[1][number].plain for number in block)]
            if beside:
                yield self._beside(block, rows)
            else:
                yield from self._below(block, rows, widths, options.max_width)
        for note in self.notes:
            yield Text(note)

    def _column(self, number: int) -> list[str]:
        return [self.figures[number], *(figures[number].plain for _, figures in self.rows)]

    def _names(self, place: int) -> list[str]:
        return [self.names[place], *(names[place] for names, _ in self.rows)]

    def _beside(self, block: Sequence[int], rows: Sequence[tuple[tuple[str, ...], tuple[Text, ...]]]) -> Table:
        table = _empty()
        for name in self.names:
            table.add_column(name, no_wrap=True)
        for number in block:
            table.add_column(self.figures[number], justify="right", no_wrap=True)
        before: tuple[str, ...] = ()
        for names, figures in rows:
            shown = ("" if names[: place + 1] == before[: place + 1] else name for place, name in enumerate(names[:-1]))
            cells = [Text(name, style="" if place else "bold") for place, name in enumerate((*shown, names[-1]))]
            table.add_row(*cells, *(figures[number] for number in block))
            before = names
        return table

    def _below(
        self,
        block: Sequence[int],
        rows: Sequence[tuple[tuple[str, ...], tuple[Text, ...]]],
        widths: Sequence[int],
        room: int,
    ) -> Iterator[RenderableType]:
        def line(cells: Sequence[Text]) -> Table:
            table = _empty(show_header=False)
            table.add_column(width=_INDENT - 1)
            for number in block:
                table.add_column(justify="right", no_wrap=True, width=widths[number])
            table.add_row("", *cells)
            return table

        yield line([Text(self.figures[number], style="table.header") for number in block])
        for names, figures in rows:
            together = " ".join(names)
            for name in [together] if cell_len(together) <= room else names:
                yield Text(name, style="bold", no_wrap=True, overflow="ignore")
            yield line([figures[number] for number in block])


def _empty(show_header: bool = True) -> Table:
    return Table(padding=(0, 1, 0, 0), box=None, pad_edge=False, show_header=show_header)


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Numbers of the columns that fit in the room together, one after the other with a space between them."""
    block: list[int] = []
    taken = 0
    for number, width in enumerate(widths):
        if block and taken + 1 + width > room:
            yield block
            block, taken = [], 0
        taken += width + bool(block)
        block.append(number)
    yield block
