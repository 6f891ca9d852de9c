"""Windows of a stream by their time.

A run counts its windows from the one in which its stream began, once and for all. The number is short for a time, so
a stream that grows, loses its oldest files, or gets older ones changes the number of no window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from exfm.data.source_errors import source_errors
from exfm.interfaces.data_source import DataSource, TimeRange, Window
from exfm.interfaces.duration import microseconds


@dataclass(frozen=True)
class WindowGrid:
    """Numbers windows of equal length.

    Attributes:
        origin_us: where window 0 starts, a multiple of the length since 1970.
        length_us: length of a window, microseconds.
    """

    origin_us: int
    length_us: int

    @classmethod
    def around(cls, time_us: int, length: timedelta) -> Self:
        """Makes the grid whose window 0 holds a time."""
        length_us = microseconds(length)
        return cls(time_us // length_us * length_us, length_us)

    def window(self, index: int) -> Window:
        """Gives the window of an index."""
        start_us = self.origin_us + index * self.length_us
        return Window(index, start_us, start_us + self.length_us)

    def index_at(self, time_us: int) -> int:
        """Gives the index of the window that holds a time; negative before window 0."""
        return (time_us - self.origin_us) // self.length_us


def windows_with_events(
    source: DataSource, grid: WindowGrid, span: TimeRange, delays_us: Sequence[int] = ()
) -> Iterator[Window]:
    """Yields, in order, the windows of a time range in which something may happen.

    Args:
        delays_us: an event calls for work again so long after it, when a late label of it becomes known.
    """
    position_us = span.start_us
    while position_us < span.end_us:
        times_us = []
        for delay_us in (0, *delays_us):
            with source_errors():
                event_us = source.next_event_us(position_us - delay_us)
            if event_us is not None:
                times_us.append(event_us + delay_us)
        if not times_us or min(times_us) >= span.end_us:
            return
        window = grid.window(grid.index_at(max(position_us, min(times_us))))
        yield window
        position_us = window.end_us


def windows_of(source: DataSource, length: timedelta) -> Iterator[Window]:
    """Yields the windows with events of a whole stream, counted from its first."""
    span = source.time_range()
    yield from windows_with_events(source, WindowGrid.around(span.start_us, length), span)
