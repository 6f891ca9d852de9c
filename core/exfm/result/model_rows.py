"""Reads rows of the stream that a model sees, as they are before they become tensors."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from exfm.config.checks import filter_columns
from exfm.config.loading import Experiment
from exfm.data.source_errors import source_errors
from exfm.data.traffic import rows_where
from exfm.data.validation import RowChecker
from exfm.data.windows import stream_windows
from exfm.errors import ConfigError
from exfm.serving.find_snapshot import find_arm


def first_rows(experiment: Experiment, model: str, count: int, window: int = 0) -> pa.RecordBatch:
    """Reads the first rows that a model sees; fewer where the stream ends before.

    Rows that break the schema are left out.

    Args:
        experiment: from ``exfm.load_experiment``.
        model: a model's name; a control is called NAME.control.
        count: the number of rows.
        window: begin with this window of the stream, counted from 0.

    Raises:
        ConfigError: there is no such model, the stream has no such window, or the model sees no row from there on.
    """
    if count < 1:
        raise ConfigError(f"rows: the number of rows is at least 1; given: {count}")
    batches: list[pa.RecordBatch] = []
    missing = count
    for rows in _seen_rows(experiment, model, window):
        batches.append(rows.slice(0, missing))
        missing -= batches[-1].num_rows
        if not missing:
            break
    if not batches:
        raise ConfigError(f"rows: {model} sees no row of the stream from window {window} on")
    return pa.Table.from_batches(batches).combine_chunks().to_batches()[0]


def _seen_rows(experiment: Experiment, model: str, first: int) -> Iterator[pa.RecordBatch]:
    """Yields the rows that the model sees, as the source yields them."""
    schema, source = experiment.schema, experiment.source
    where, columns = find_arm(experiment, model).config.where, filter_columns(schema)
    with source_errors():
        windows = list(stream_windows(source, experiment.config.stream.window))
    if not 0 <= first < len(windows):
        raise ConfigError(f"rows: the stream has windows 0 to {len(windows) - 1}; given: window={first}")
    for window in windows[first:]:
        checker = RowChecker(schema, skip=True, newest_us=window.start_us, in_order=source.in_order)
        for batch in source.read(window):
            rows = checker.check(batch)
            kept = rows_where(rows, where, columns, schema.example_id)
            if kept is not None:
                rows = rows.take(pa.array(kept.numpy()))
            if rows.num_rows:
                yield rows
