"""`exfm predict`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import AT, CONFIG, LOG_FORMAT, MODEL, OVERRIDES, Session
from exfm.cli.time_range import parse_time_range
from exfm.errors import ConfigError
from exfm.redaction import without_credentials
from exfm.reporting.log_lines import LogFormat

if TYPE_CHECKING:
    from exfm.interfaces.data_source import TimeRange


def command(
    context: typer.Context,
    config: CONFIG,
    model: MODEL,
    out: Annotated[str, typer.Option("--out", metavar="URL", help="The Parquet file to write, any fsspec URL.")],
    overrides: OVERRIDES = None,
    at: AT = None,
    snapshot: Annotated[
        str | None, typer.Option("--snapshot", metavar="VERSION", help="The number of a snapshot, or latest.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="Rows from this time on, such as 2026-01-31T12:00 (UTC)."),
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Rows before this time.")] = None,
    log_format: LOG_FORMAT = LogFormat.TEXT,
) -> None:
    """Predicts the stream's rows with a model's newest published snapshot, or with another snapshot."""
    from exfm.config.loading import load_experiment

    session: Session = context.obj
    between: TimeRange | None = None
    if since is not None or until is not None:
        between = parse_time_range(("--from", since), ("--to", until))
    if snapshot is not None:
        at = _version_text(snapshot, at)
    experiment = load_experiment(config, overrides or [], block=session.block)

    from exfm.reporting.progress import StreamProgress
    from exfm.serving.predict import predict
    from exfm.storage.aliases import LATEST

    with StreamProgress(f"predict {model}", log_format) as progress:
        used, rows = predict(experiment, model, out, progress.update, at or LATEST, between)
    watermark = f"{datetime.fromtimestamp(used.watermark_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
    typer.echo(f"predict {model}: {rows} rows, snapshot {used.version}, trained until {watermark}")
    typer.echo(without_credentials(out))


def _version_text(text: str, at: str | None) -> str:
    """Checks ``--snapshot``, which names a snapshot by its number alone."""
    if at is not None:
        raise ConfigError(f"--at {at} and --snapshot {text}: write one of the two")
    if text != "latest" and not text.isdecimal():
        raise ConfigError(f"--snapshot: write the number of a snapshot, or latest; given: {text!r}")
    return text
