"""Cuts a stream into windows by time.

A run counts its windows from the window in which its stream began. The index of a window depends on its time alone, so
a stream that grows, loses its oldest files or gets older files changes no index.
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
        origin_us: start of window 0, a multiple of the length since 1970.
        length_us: length of a window, microseconds.
    """

    origin_us: int
    length_us: int

    @classmethod
    def around(cls, time_us: int, length: timedelta) -> Self:
        """Makes the grid whose window 0 contains a time."""
        length_us = microseconds(length)
        return cls(time_us // length_us * length_us, length_us)

    def window(self, index: int) -> Window:
        """Returns the window of an index."""
        start_us = self.origin_us + index * self.length_us
        return Window(index, start_us, start_us + self.length_us)

    def index_at(self, time_us: int) -> int:
        """Returns the index of the window that contains a time; negative before window 0."""
        return (time_us - self.origin_us) // self.length_us


def windows_with_events(
    source: DataSource, grid: WindowGrid, span: TimeRange, delays_us: Sequence[int] = ()
) -> Iterator[Window]:
    """Yields, in order, the windows of a time range that contain an event or a late label.

    Args:
        delays_us: delays after which late labels of an event become available.
    """
    position_us = span.start_us
    while position_us < span.end_us:
        # The next time of work: an event itself, or a late label of an event that lies a delay before.
        times_us = []
        for delay_us in (0, *delays_us):
            with source_errors():
                event_us = source.next_event_us(position_us - delay_us)
            if event_us is not None:
                times_us.append(event_us + delay_us)
        if not times_us or min(times_us) >= span.end_us:
            return
        # Not before the position, so that a window is yielded once whatever the source answers.
        window = grid.window(grid.index_at(max(position_us, min(times_us))))
        yield window
        position_us = window.end_us


def stream_windows(source: DataSource, length: timedelta) -> Iterator[Window]:
    """Yields the windows with events of a whole stream, counted from its first window."""
    span = source.time_range()
    yield from windows_with_events(source, WindowGrid.around(span.start_us, length), span)
