"""Labels past windows of a teacher, for `exfm supervise --backfill`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from exfm.cli.context import Session
from exfm.cli.jobs import check_stores
from exfm.cli.time_range import parse_time_range
from exfm.errors import ConfigError
from exfm.reporting.log_lines import LogFormat, json_line

if TYPE_CHECKING:
    from exfm.experiment.backfill import BackfilledWindow
    from exfm.interfaces.data_source import TimeRange


def run_backfill(
    session: Session,
    config: str,
    overrides: list[str],
    models: Sequence[str],
    between: str,
    log_format: LogFormat,
) -> None:
    """Loads the experiment and labels past windows of some teachers."""
    from exfm.config.loading import load_experiment

    span = _time_range(between)
    experiment = load_experiment(config, overrides, block=session.block)
    for model in models:
        check_stores(experiment, model)

    from exfm.experiment.backfill import Backfiller
    from exfm.experiment.run import build_plan
    from exfm.scheduling.identity import open_run
    from exfm.supervision.store import open_store

    store, plan = open_store(experiment), build_plan(experiment)
    open_run(experiment, store, models)
    for model in dict.fromkeys(models):
        windows: list[BackfilledWindow] = []

        def report(done: BackfilledWindow, windows: list[BackfilledWindow] = windows, model: str = model) -> None:
            windows.append(done)
            typer.echo(_line(model, done, log_format), err=True)

        Backfiller(experiment, store, plan, model).run(span, report)
        if not windows:
            raise ConfigError(f"--backfill {between!r}: no window of the stream begins in that time")
        rows = sum(done.rows for done in windows)
        masked = sum(done.masked for done in windows)
        typer.echo(f"supervise {model}: {rows:,} rows of {len(windows)} windows labelled, {masked} windows masked")
    plan.process_group.close()


def _line(model: str, done: BackfilledWindow, log_format: LogFormat) -> str:
    """Formats a window for the log."""
    if log_format == LogFormat.TEXT:
        return f"{done.window}: {_words(done)}"
    fields = {"window": done.window.index, "window_start": str(done.window), "rows": done.rows}
    return json_line("info", event="backfill", job=f"supervise {model}", **fields, message=_words(done))


def _words(done: BackfilledWindow) -> str:
    if done.rows:
        return f"{done.rows:,} rows labelled by snapshot {done.version}"
    masked = "; its students learn from no supervision in it" if done.masked else ""
    return f"nothing labelled: {done.left}{masked}"


def _time_range(text: str) -> TimeRange:
    """Parses FROM..TO, either of which may be left out."""
    since, dots, until = text.partition("..")
    if not dots:
        raise ConfigError(f"--backfill {text!r}: write FROM..TO, two times (UTC) such as 2026-01-20..2026-02-01T12:00")
    return parse_time_range(("--backfill FROM", since or None), ("--backfill TO", until or None))
