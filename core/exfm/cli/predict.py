"""`exfm predict`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session
from exfm.errors import ConfigError
from exfm.redaction import without_credentials

if TYPE_CHECKING:
    from exfm.interfaces.data_source import TimeRange

_1970 = datetime(1970, 1, 1, tzinfo=UTC)


def command(
    context: typer.Context,
    config: CONFIG,
    model: Annotated[str, typer.Option("--model", help="The model; a control is called NAME.control.")],
    out: Annotated[str, typer.Option("--out", metavar="URL", help="The Parquet file to write, any fsspec URL.")],
    overrides: OVERRIDES = None,
    snapshot: Annotated[
        str, typer.Option("--snapshot", metavar="VERSION", help="The number of a snapshot, or latest.")
    ] = "latest",
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Rows from this time on, such as 2026-01-31T12:00 (UTC)."),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Rows before this time.")] = None,
) -> None:
    """Predicts the stream's rows with a model's newest snapshot, or with an older snapshot."""
    from exfm.config.loading import load_experiment

    session: Session = context.obj
    version, between = _snapshot_version(snapshot), _time_between(since, until)
    experiment = load_experiment(config, overrides or [], block=session.block)

    from exfm.reporting.progress import StreamProgress
    from exfm.serving.predict import predict

    with StreamProgress(f"predict {model}") as progress:
        used, rows = predict(experiment, model, out, progress.update, version, between)
    watermark = f"{datetime.fromtimestamp(used.watermark_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
    typer.echo(f"predict {model}: {rows} rows, snapshot {used.version}, trained until {watermark}")
    typer.echo(without_credentials(out))


def _snapshot_version(text: str) -> int | None:
    """Parses the number of a snapshot; None for the newest."""
    if text == "latest":
        return None
    if not text.isdecimal():
        raise ConfigError(f"--snapshot: write the number of a snapshot, or latest; given: {text!r}")
    return int(text)


def _time_between(since: str | None, until: str | None) -> TimeRange | None:
    """Parses the ends of a time range, either of which may be open; None where both are."""
    from exfm.interfaces.data_source import TimeRange

    if since is None and until is None:
        return None
    start_us, end_us = 0, sys.maxsize
    if since is not None:
        start_us = _microseconds("--from", since)
    if until is not None:
        end_us = _microseconds("--to", until)
    if start_us >= end_us:
        raise ConfigError(f"--from {since} --to {until}: the end must come after the start")
    return TimeRange(start_us, end_us)


def _microseconds(option: str, text: str) -> int:
    """Parses a time into microseconds since 1970; a time without zone is in UTC."""
    from exfm.interfaces.duration import microseconds

    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option}: write a time such as 2026-01-31 or 2026-01-31T12:00, in UTC; given: {text!r}"
        ) from None
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    # A difference is converted in whole numbers; a timestamp in float seconds would lose microseconds.
    return microseconds(time - _1970)
