"""`exfm serve`."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Annotated

import typer

from exfm.errors import ConfigError


def command(
    export: Annotated[
        str, typer.Argument(metavar="EXPORT", help="The folder that `exfm export` wrote, any fsspec URL.")
    ],
    host: Annotated[str, typer.Option("--host", help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="The port; 0 for any that is free.")] = 8000,
    refresh_s: Annotated[
        float, typer.Option("--refresh", metavar="SECONDS", min=0, help="Look for new weights so often; 0: never.")
    ] = 10.0,
    batch_rows: Annotated[
        int, typer.Option("--batch-rows", min=1, help="Rows of requests that are predicted together at most.")
    ] = 1024,
    wait_ms: Annotated[
        float, typer.Option("--batch-wait", metavar="MS", min=0, help="Time for which a request waits for others.")
    ] = 0.0,
    max_rows: Annotated[int, typer.Option("--max-rows", min=1, help="Rows of a request at most.")] = 10_000,
    max_mb: Annotated[float, typer.Option("--max-mb", min=0.001, help="Size of a request at most.")] = 10.0,
    max_requests: Annotated[
        int, typer.Option("--max-requests", min=1, help="Requests at once; others are answered 503.")
    ] = 256,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Time in which a request must arrive.")
    ] = 10.0,
    log: Annotated[
        str | None,
        typer.Option(
            "--log", metavar="URL", help="A folder that gets the rows and their predictions as Parquet files."
        ),
    ] = None,
    log_s: Annotated[
        float, typer.Option("--log-every", metavar="SECONDS", min=0.1, help="Time after which a log file is completed.")
    ] = 60.0,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of a prediction.")] = 1,
) -> None:
    """Serves an export over HTTP: predictions, health and metrics, with new weights as they are exported."""
    try:
        from exfm.serving.http.server import Server
    except ImportError as error:
        raise ConfigError(f"exfm serve: {error}: pip install 'exfm[serve]'") from error
    import torch

    from exfm.redaction import without_credentials
    from exfm.serving import load
    from exfm.serving.http.app import Limits, build_app
    from exfm.serving.http.metrics import Metrics
    from exfm.serving.http.prediction_log import PredictionLog
    from exfm.serving.http.service import Service

    torch.set_num_threads(threads)
    metrics = Metrics()
    prediction_log = None if log is None else PredictionLog(log, log_s)
    service = Service(load(export), batch_rows, wait_ms / 1e3, refresh_s, metrics.predicted)
    metrics.watch(service, prediction_log)
    limits = Limits(max_rows, int(max_mb * 1e6), max_requests, timeout_s)
    app = build_app(service, metrics, limits, prediction_log)
    described = service.description

    def say(address: str) -> None:
        typer.echo(f"{described.model}, snapshot {described.snapshot}, on {address}")
        sys.stdout.flush()  # a program that has started this one may wait for the line

    if log is not None:
        typer.echo(f"rows and predictions are logged to {without_credentials(log)}", err=True)
    # uvicorn has ended in order when it raises the signal again.
    with suppress(KeyboardInterrupt):
        Server(app, host, port, limits, say).run()
