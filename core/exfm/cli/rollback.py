"""`exfm rollback`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import MODEL, PRODUCTION, RUN


def command(
    run: RUN,
    model: MODEL,
    alias: Annotated[str, typer.Option("--alias", help="The name to move.")] = PRODUCTION,
) -> None:
    """Moves an alias back to the good snapshot that it pointed at before."""
    from exfm.serving.snapshot_list import check_model, open_run_folder

    store, names = open_run_folder(run)
    check_model(model, names)
    before, now = store.snapshots.rollback(model, alias)
    typer.echo(f"{model}: {alias} is snapshot {now}; it was {before}")
