"""`exfm snapshots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import RUN, console, print_json

if TYPE_CHECKING:
    from exfm.serving.snapshot_list import ListedSnapshot


def command(
    run: RUN,
    model: Annotated[str | None, typer.Option("--model", help="Of this model alone; by default of all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Lists the snapshots of a run's models: figures, size, state and aliases."""
    from exfm.serving.snapshot_list import check_model, list_snapshots, open_run_folder

    store, names = open_run_folder(run)
    if model is not None:
        check_model(model, names)
        names = [model]
    listed: list[ListedSnapshot] = []
    for name in names:
        listed += list_snapshots(store, name)
    if as_json:
        print_json(list(map(asdict, listed)))
        return
    if not listed:
        typer.echo(f"{run}: no snapshot yet; `exfm run` and `exfm train` publish them")
        return
    _print_table(listed)


def _print_table(listed: Sequence[ListedSnapshot]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    # The column is empty without gates.
    gated = any(snapshot.predecessor is not None for snapshot in listed)
    compared = ("over predecessor",) if gated else ()
    figures = ("NE", "calibration", *compared)
    for heading in ("model", "version", "trained until", *figures, "size", "kind", "state", "aliases"):
        table.add_column(heading, overflow="fold")
    for snapshot in listed:
        size = f"{snapshot.bytes / 1e6:,.1f} MB" if snapshot.bytes else "-"
        kind = "full" if snapshot.delta_of is None else f"changes of {snapshot.delta_of}"
        state = f"{snapshot.state}, newest" if snapshot.newest else snapshot.state
        table.add_row(
            *(snapshot.model, str(snapshot.version), snapshot.watermark.replace("+00:00", "Z")),
            *(_figure(snapshot, "ne", 4), _figure(snapshot, "calibration", 3)),
            *((_excess(snapshot),) if gated else ()),
            *(size, kind, state, ", ".join(snapshot.aliases) or "-"),
        )
    console(160).print(table)
    for snapshot in listed:
        for reason in snapshot.held.values():
            typer.echo(f"{snapshot.model} {snapshot.version} is held: {reason}")
    if any(not snapshot.tasks for snapshot in listed):
        typer.echo("-: windows that an earlier exfm committed, which kept no figures; results.json has them")


def _figure(snapshot: ListedSnapshot, name: str, digits: int) -> str:
    """Formats a figure of each task; the task is named where there are several."""
    return _by_task({task: figures[name] for task, figures in snapshot.tasks.items()}, f".{digits}f")


def _excess(snapshot: ListedSnapshot) -> str:
    """Formats by how much the model's NE is above that of the snapshot it was compared with."""
    if snapshot.predecessor is None:
        return "-"
    return _by_task({task: figures["excess"] for task, figures in snapshot.predecessor.tasks.items()}, "+.1%")


def _by_task(values: Mapping[str, float | None], form: str) -> str:
    texts: list[str] = []
    for task, value in values.items():
        text = "-" if value is None else format(value, form)
        texts.append(f"{task} {text}" if len(values) > 1 else text)
    return "\n".join(texts) or "-"
