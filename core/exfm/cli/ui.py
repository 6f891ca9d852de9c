"""`exfm ui`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer

from exfm.errors import ConfigError


def command(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Folders of runs, or folders that hold runs; any fsspec URL.")
    ],
    host: Annotated[
        str, typer.Option(help="The address to listen on. Whoever reaches it can read the page.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8420,
) -> None:
    """Serves a read-only page on this machine that watches and compares runs."""
    from exfm.web.runs import find_runs
    from exfm.web.server import PageServer

    shown = find_runs(runs)
    try:
        server = PageServer(host, port, shown)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--host {host} --port {port}: it cannot listen there: {error}; --port 0 takes any"
        ) from error
    count = "1 run" if len(shown) == 1 else f"{len(shown)} runs"
    typer.echo(f"{server.url} shows {count}; Ctrl-C ends it")
    # There is nothing to lose and nothing to say when it is ended.
    with server, suppress(KeyboardInterrupt):
        server.serve_forever(poll_interval=0.2)
