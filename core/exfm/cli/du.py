"""`exfm du`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import RUN, console, print_json

if TYPE_CHECKING:
    from exfm.storage.disk_usage import Usage


def command(run: RUN, as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Adds up the files of a run by model and kind: snapshots, supervision, predictions, manifests, other."""
    from exfm.serving.snapshot_list import open_run_folder
    from exfm.storage.disk_usage import disk_usage

    store, _ = open_run_folder(run)
    usage = disk_usage(store.workspace)
    if as_json:
        print_json(list(map(asdict, usage)))
        return
    _print_table(usage)


def _print_table(usage: Sequence[Usage]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("model", "kind"):
        table.add_column(heading)
    for heading in ("MB", "files"):
        table.add_column(heading, justify="right")
    for counted in usage:
        table.add_row(counted.model or "-", counted.kind, f"{counted.bytes / 1e6:,.2f}", str(counted.files))
    total = sum(counted.bytes for counted in usage)
    table.add_row("all", "", f"{total / 1e6:,.2f}", str(sum(counted.files for counted in usage)))
    console(100).print(table)
