"""Lays out a table for a terminal of any width, without breaking a name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

_INDENT = 2

Row = tuple[tuple[str, ...], tuple[Text, ...]]
"""The names and the figures of a row."""


@dataclass
class FittedTable:
    """Shows rows of names with figures to the right of them.

    Where the figures do not fit in the console's width, they are spread over several tables, each with the names. Where
    the names leave no room for a figure, names and figures are on separate lines.

    Attributes:
        names: the headings of the names.
        figures: the headings of the figures.
        notes: lines below the table.
    """

    title: str
    names: Sequence[str]
    figures: Sequence[str]
    notes: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)

    def add_row(self, names: Sequence[str], figures: Sequence[Text | str]) -> None:
        """Adds a row; a name equal to the name above it is shown once."""
        cells = []
        for figure in figures:
            # Text is not parsed for markup, so a name in brackets stays as it is.
            cells.append(figure if isinstance(figure, Text) else Text(figure))
        self.rows.append((tuple(names), tuple(cells)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yields the title, the tables that fit, and the notes."""
        yield Text(self.title, style="table.title")
        widths = list(map(self._figure_width, range(len(self.figures))))
        names_width = sum(map(self._name_width, range(len(self.names))))
        fits_beside = names_width + max(widths) <= options.max_width
        taken = names_width if fits_beside else _INDENT
        for block in _blocks(widths, options.max_width - taken):
            rows = self.rows
            # The first block has every row; later blocks only the rows with any figure in them.
            if block[0]:
                yield Text()
                rows = [row for row in rows if any(row[1][number].plain for number in block)]
            if fits_beside:
                yield self._beside(block, rows)
            else:
                yield from self._below(block, rows, widths, options.max_width)
        for note in self.notes:
            yield Text(note)

    def _figure_width(self, number: int) -> int:
        """Measures a column of figures in terminal cells."""
        width = cell_len(self.figures[number])
        for _, figures in self.rows:
            width = max(width, cell_len(figures[number].plain))
        return width

    def _name_width(self, number: int) -> int:
        """Measures a column of names in terminal cells, with a space after it."""
        width = cell_len(self.names[number])
        for names, _ in self.rows:
            width = max(width, cell_len(names[number]))
        return width + 1

    def _beside(self, block: Sequence[int], rows: Sequence[Row]) -> Table:
        """Builds a table with the figures of a block beside the names."""
        table = _borderless_table()
        for name in self.names:
            table.add_column(name, no_wrap=True)
        for number in block:
            table.add_column(self.figures[number], justify="right", no_wrap=True)
        above: tuple[str, ...] = ()
        for names, figures in rows:
            cells = []
            for number, name in enumerate(names):
                # A name is left out where it and all names before it repeat the row above. The last is always shown.
                is_repeated = number < len(names) - 1 and names[: number + 1] == above[: number + 1]
                cells.append(Text("" if is_repeated else name, style="" if number else "bold"))
            table.add_row(*cells, *(figures[number] for number in block))
            above = names
        return table

    def _below(
        self, block: Sequence[int], rows: Sequence[Row], widths: Sequence[int], width: int
    ) -> Iterator[RenderableType]:
        """Yields the names of each row on lines, and the figures of a block below them."""

        # A table for each line, because the lines between them have no columns.
        def figures_line(cells: Sequence[Text]) -> Table:
            table = _borderless_table(show_header=False)
            table.add_column(width=_INDENT - 1)
            for number in block:
                table.add_column(justify="right", no_wrap=True, width=widths[number])
            table.add_row("", *cells)
            return table

        yield figures_line([Text(self.figures[number], style="table.header") for number in block])
        for names, figures in rows:
            lines: Sequence[str] = [" ".join(names)]
            if cell_len(lines[0]) > width:
                lines = names
            for line in lines:
                yield Text(line, style="bold", no_wrap=True, overflow="ignore")
            yield figures_line([figures[number] for number in block])


def _borderless_table(show_header: bool = True) -> Table:
    return Table(padding=(0, 1, 0, 0), box=None, pad_edge=False, show_header=show_header)


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Yields numbers of the columns that fit in the room side by side with a space between them."""
    block: list[int] = []
    taken = 0
    for number, width in enumerate(widths):
        # A column wider than the room is a block by itself.
        if block and taken + 1 + width > room:
            yield block
            block, taken = [], 0
        # The space before a column; the first of a block has none.
        taken += width + bool(block)
        block.append(number)
    yield block
