"""`exfm predict`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session
from exfm.redaction import without_credentials


def command(
    context: typer.Context,
    config: CONFIG,
    model: Annotated[str, typer.Option("--model", help="The model; a control is called NAME.control.")],
    out: Annotated[str, typer.Option("--out", metavar="URL", help="The Parquet file to write, any fsspec URL.")],
    overrides: OVERRIDES = None,
) -> None:
    """Predicts the stream's rows with a model's newest snapshot."""
    from exfm.config.loading import load_experiment

    session: Session = context.obj
    experiment = load_experiment(config, overrides or [], block=session.block)

    from exfm.reporting.progress import StreamProgress
    from exfm.serving.predict import predict

    with StreamProgress(f"predict {model}") as progress:
        snapshot, rows = predict(experiment, model, out, progress.update)
    watermark = f"{datetime.fromtimestamp(snapshot.watermark_us / 1e6, UTC):%Y-%m-%d %H:%M} UTC"
    typer.echo(f"predict {model}: {rows} rows, snapshot {snapshot.version}, trained until {watermark}")
    typer.echo(without_credentials(out))
