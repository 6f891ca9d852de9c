"""The stream as all processes of a job take it to be: which time it covers, and which parts it has."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from exfm.config.loading import Experiment
from exfm.data.source_errors import source_errors
from exfm.data.windows import WindowGrid
from exfm.errors import ConfigError, RunError
from exfm.interfaces.data_source import DataSource, StreamPart, TimeRange
from exfm.interfaces.duration import microseconds
from exfm.interfaces.process_group import ProcessGroup
from exfm.scheduling.identity import grid_of
from exfm.scheduling.late_rows import earlier_words
from exfm.scheduling.schedule import Schedule, StreamState
from exfm.supervision.store import Store

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_LISTINGS = 10
"""How often, a second apart, processes list the stream before they say that they see different files."""


def read_schedule(
    experiment: Experiment, store: Store, process_group: ProcessGroup, complete_windows_only: bool
) -> Schedule:
    """Reads which time and which parts the stream has, and how the run counts its windows.

    Args:
        complete_windows_only: leave out a last window that more rows may still come for.

    Raises:
        ConfigError: the stream begins earlier than the run did.
        RunError: processes do not see the same parts.
    """
    stream = experiment.config.stream
    with source_errors():
        span = experiment.source.time_range()
    parts = _agreed_parts(experiment.source, process_group)
    start_us, end_us = process_group.broadcast(span.start_us), process_group.broadcast(span.end_us)
    if stream.start is not None:
        start_us = max(start_us, microseconds(stream.start - _EPOCH))
    span = TimeRange(start_us, max(start_us, end_us))
    grid = WindowGrid.around(span.start_us, stream.window)
    kept = grid_of(store) if process_group.is_rank_zero else None
    if kept is not None and span.start_us < kept.origin_us:
        raise ConfigError(earlier_words(parts, kept, span))
    origin_us = process_group.broadcast(grid.origin_us if kept is None else kept.origin_us)
    grid, bound = WindowGrid(origin_us, grid.length_us), kept is not None
    return Schedule(experiment, store.log, process_group, StreamState(grid, span, parts, bound), complete_windows_only)


def _agreed_parts(source: DataSource, process_group: ProcessGroup) -> Sequence[StreamPart]:
    """Lists the stream's parts, once every process sees the same.

    Raises:
        RunError: another process sees other parts, and goes on seeing them.
    """
    for attempt in range(_LISTINGS):
        with source_errors():
            parts = source.parts()
        # Names and versions may differ between machines that hold copies; which time each covers may not.
        extents = json.dumps(sorted((part.first_us, part.last_us) for part in parts)).encode()
        if process_group.all_agree(process_group.broadcast_bytes(extents) == extents):
            return parts
        if attempt + 1 < _LISTINGS:
            time.sleep(1.0)
    raise RunError(
        f"stream.source: process {process_group.rank} and the first one do not see the same parts of the stream; every "
        "process must read the same files. Call the job again when they all see them."
    )
