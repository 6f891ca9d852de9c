"""Reads the time range and the parts of the stream, on which all processes of a job agree."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import timedelta

from exfm.config.loading import Experiment
from exfm.data.source_errors import source_errors
from exfm.data.windows import WindowGrid
from exfm.errors import ConfigError, NotYetError, RunError
from exfm.interfaces.data_source import DataSource, StreamPart, TimeRange
from exfm.interfaces.duration import format_duration, microseconds_since_1970
from exfm.interfaces.process_group import ProcessGroup
from exfm.scheduling.identity import read_grid
from exfm.scheduling.late_rows import earlier_start_message
from exfm.scheduling.schedule import Schedule, StreamState
from exfm.supervision.store import Store

_LISTINGS = 10
"""How often, a second apart, processes list the stream: shared storage may show a new file to some of them later."""


def read_schedule(
    experiment: Experiment, store: Store, process_group: ProcessGroup, complete_windows_only: bool
) -> Schedule:
    """Reads the time range, the parts and the window grid of the stream, and builds the schedule.

    Args:
        complete_windows_only: leave out a last window that more rows may still come for.

    Raises:
        ConfigError: the stream begins before the run.
        RunError: processes do not see the same parts.
    """
    stream = experiment.config.stream
    with source_errors():
        span = experiment.source.time_range()
    parts = _agreed_parts(experiment.source, process_group)
    # The range of rank zero for all, because the stream may grow while processes read it in turn.
    start_us, end_us = process_group.broadcast(span.start_us), process_group.broadcast(span.end_us)
    if stream.start is not None:
        start_us = max(start_us, microseconds_since_1970(stream.start))
    span = TimeRange(start_us, max(start_us, end_us))
    grid = WindowGrid.around(span.start_us, stream.window)
    kept: WindowGrid | None = None
    waiting = ""
    if process_group.is_rank_zero:
        kept = read_grid(store)
        if kept is not None and kept.length_us != grid.length_us:
            raise ConfigError(
                f"stream.window: the models of {store.workspace.url} have windows of "
                f"{format_duration(timedelta(microseconds=kept.length_us))}, and this file has "
                f"{format_duration(stream.window)}. Give another run_dir."
            )
        counted, waiting = _counted_from(store, experiment.lenders.keys() - experiment.frozen.keys(), kept)
        grid = counted or grid
    # On all processes, because a follower goes on after this error and looks again.
    if process_group.broadcast(bool(waiting)):
        raise NotYetError(waiting or "a teacher of another run has no windows yet")
    if process_group.is_rank_zero and span.start_us < grid.origin_us:
        raise ConfigError(earlier_start_message(parts, grid, span))
    bound = kept is not None
    # Broadcast, because the other ranks do not read run.json, which another job may create meanwhile.
    origin_us = process_group.broadcast(grid.origin_us)
    state = StreamState(WindowGrid(origin_us, grid.length_us), span, parts, bound)
    return Schedule(experiment, store, process_group, state, complete_windows_only)


def _counted_from(store: Store, teachers: Iterable[str], kept: WindowGrid | None) -> tuple[WindowGrid | None, str]:
    """Returns the windows of the run, which are counted as by the runs of its teachers, and the run that it waits for.

    Args:
        teachers: the names of the teachers that other runs train, and that teach as they go on.
        kept: the windows of the run itself; None before its first commit.

    Raises:
        ConfigError: two of the runs count windows from different times.
    """
    for name in teachers:
        home = store.home(name)
        lent = read_grid(home.store)
        if lent is None:
            return kept, f"teachers.{name}: the run {home.store.workspace.url} has committed no window yet"
        if kept is not None and lent != kept:
            raise ConfigError(
                f"teachers.{name}: the run {home.store.workspace.url} counts windows from {lent.window(0)}, and this "
                f"run or another teacher's from {kept.window(0)}. Give this experiment a run_dir of its own"
            )
        kept = lent
    return kept, ""


def _agreed_parts(source: DataSource, process_group: ProcessGroup) -> Sequence[StreamPart]:
    """Lists the stream's parts, once every process sees the same parts.

    Raises:
        RunError: another process still sees other parts after ten attempts.
    """
    for attempt in range(_LISTINGS):
        with source_errors():
            parts = source.parts()
            agrees = _agrees(source, parts, process_group)
        # All processes decide alike: a process that went on alone would wait in a collective for the others.
        if process_group.all_agree(agrees):
            return parts
        if attempt + 1 < _LISTINGS:
            time.sleep(1.0)
    raise RunError(
        f"stream.source: process {process_group.rank} and the first one do not see the same parts of the stream; every "
        "process must read the same files. Call the job again when they all see them."
    )


def _agrees(source: DataSource, parts: Sequence[StreamPart], process_group: ProcessGroup) -> bool:
    """Returns whether this process reads the same parts as the first."""
    if process_group.world_size > 1 and type(source).pin is not DataSource.pin:
        listed = process_group.broadcast_bytes(json.dumps([asdict(each) for each in parts]).encode())
        return process_group.is_rank_zero or source.pin([StreamPart(**each) for each in json.loads(listed)])
    # Folders and versions may differ between machines that hold copies; which time each covers may not.
    extents = sorted((each.first_us, each.last_us, _file_name(source, each)) for each in parts)
    data = json.dumps(extents).encode()
    return process_group.broadcast_bytes(data) == data


def _file_name(source: DataSource, stream_part: StreamPart) -> str:
    """Returns the name of a part without its folder, where processes divide the parts, by time and name."""
    return stream_part.name.rpartition("/")[2] if source.splits else ""
