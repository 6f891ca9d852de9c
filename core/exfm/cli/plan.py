"""`exfm plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session, console, print_json
from exfm.errors import ConfigError


def command(
    context: typer.Context,
    config: CONFIG,
    world_size: Annotated[int, typer.Option("--world-size", min=1, help="How many processes, one for each device.")],
    overrides: OVERRIDES = None,
    sharding_group: Annotated[
        int | None,
        typer.Option("--sharding-group", min=1, help="Processes that keep one copy; what the file says by default."),
    ] = None,
    hbm_gb: Annotated[float, typer.Option("--hbm-gb", min=0.0, help="Memory of a device, in 10^9 bytes.")] = 80.0,
    per_machine: Annotated[int, typer.Option("--per-machine", min=1, help="Devices of a machine.")] = 8,
    model: Annotated[str | None, typer.Option("--model", help="One model; by default all, as `exfm run`.")] = None,
    length: Annotated[
        list[str] | None,
        typer.Option("--length", metavar="NAME=N", help="Ids of a list, or events of a history; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows where an experiment's models would go, what each process would hold and send, and whether it fits."""
    from exfm.config.loading import Experiment, load_experiment
    from exfm.interfaces.layout import Cluster
    from exfm.planning.plan import as_dict, plan
    from exfm.planning.remedies import Search

    session: Session = context.obj

    def load(more: list[str]) -> Experiment:
        return load_experiment(config, [*(overrides or []), *more], block=session.block)

    cluster = Cluster(world_size, min(per_machine, world_size), int(hbm_gb * 1e9), sharding_group)
    lengths = _lengths(length or [])
    made = plan(load([]), cluster, model, lengths)
    found = Search(load, made, model, lengths).found() if made.problem else []
    described = as_dict(made, found)
    if as_json:
        print_json(described)
    else:
        from exfm.reporting.plan_table import plan_tables

        for table in plan_tables(described):
            console(110).print(table)
    if made.problem:
        typer.echo(f"does not fit: {made.problem}", err=True)
        raise typer.Exit(1)


def _lengths(given: list[str]) -> dict[str, int]:
    lengths = {}
    for one in given:
        name, _, number = one.partition("=")
        if not name or not number.isdigit() or not int(number):
            raise ConfigError(f"--length {one}: write NAME=N, N a whole number from 1, such as history=50")
        lengths[name] = int(number)
    return lengths
