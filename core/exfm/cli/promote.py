"""`exfm promote`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import MODEL, PRODUCTION, RUN
from exfm.errors import ConfigError


def command(
    run: RUN,
    model: MODEL,
    version: Annotated[str, typer.Option("--version", help="The snapshot: its version, or an alias, a time, latest.")],
    alias: Annotated[str, typer.Option("--alias", help="The name it gets.")] = PRODUCTION,
) -> None:
    """Moves an alias to a snapshot, which is then never removed."""
    from exfm.serving.snapshot_list import check_model, open_run_folder
    from exfm.storage.aliases import check_alias
    from exfm.storage.snapshot_at import snapshot_at

    check_alias(alias)
    store, names = open_run_folder(run)
    check_model(model, names)
    snapshot = snapshot_at(store.snapshots, model, version)
    store.snapshots.aliases.promote(model, alias, snapshot.version)
    # Checked again, because a trainer may have removed it before it could see the alias.
    if not store.snapshots.is_stored(snapshot):
        raise ConfigError(
            f"{run}: snapshot {snapshot.version} of {model!r} was removed meanwhile: promote another one; `exfm "
            f"snapshots {run}` lists them"
        )
    typer.echo(f"{model}: {alias} is snapshot {snapshot.version}")
