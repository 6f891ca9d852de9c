"""`exfm vacuum`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import RUN

if TYPE_CHECKING:
    from exfm.supervision.row_merging import Merge
    from exfm.supervision.store import Store
    from exfm.supervision.vacuum import Vacuum


def command(
    run: RUN,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would be merged and removed, and change nothing.")
    ] = False,
) -> None:
    """Removes retired snapshots, leftovers, and rows that keep lets go and all have passed; merges small row files."""
    from exfm.serving.snapshot_list import open_run_folder
    from exfm.storage.snapshots import READING_S
    from exfm.supervision.vacuum import apply_vacuum, find_vacuum

    store, _ = open_run_folder(run)
    vacuum = find_vacuum(store)
    if not dry_run:
        if not vacuum.is_empty:
            typer.echo(f"{run}: waiting for {READING_S:.0f} s, for readers that may be about to open a file")
        vacuum = apply_vacuum(store, vacuum, READING_S)
    _print_merges(vacuum.merges if dry_run else vacuum.merged, "would be merged" if dry_run else "merged")
    _print(store, vacuum, "would be removed" if dry_run else "removed")


def _print_merges(merges: Sequence[Merge], merged: str) -> None:
    """Prints which windows' files become larger files."""
    for merge in merges:
        first, last = merge.rows[0].window, merge.rows[-1].window
        typer.echo(f"{merged}: {merge.folder} of {merge.model}, {merge.files} files of windows {first} to {last}")


def _print(store: Store, vacuum: Vacuum, removed: str) -> None:
    """Prints what is removed, what stays and for whom, and which readers do not count any more."""
    size, count = 0, len(vacuum.orphans)
    for model, versions in vacuum.snapshots.items():
        files = [file for version in versions for file in store.snapshots.files(model, version)]
        size, count = size + sum(file.bytes for file in files), count + len(files)
        if versions:
            typer.echo(f"{removed}: {len(versions)} snapshots of {model}, up to {versions[-1]}")
    for rows in vacuum.rows:
        size, count = size + sum(file.bytes for file in rows.files), count + len(rows.files)
        if rows.files:
            first = rows.first_kept
            typer.echo(f"{removed}: {rows.folder} of {rows.model}, {len(rows.files)} files of windows before {first}")
        if rows.held_by:
            typer.echo(f"stays: {rows.folder} of {rows.model} from window {rows.first_kept} on, for {rows.held_by}")
    for state in vacuum.merging.values():
        size, count = size + sum(record.bytes for record in state.replaced), count + len(state.replaced)
    if vacuum.orphans:
        typer.echo(f"{removed}: {len(vacuum.orphans)} files that no manifest names")
    for reader in vacuum.ignored:
        typer.echo(f"does not count: {reader}")
    typer.echo(f"{store.workspace.url}: {removed}: {size / 1e6:,.2f} MB in {count} files")
