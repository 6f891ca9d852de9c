"""`exfm plan`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session, console, print_json
from exfm.errors import ConfigError


def command(
    context: typer.Context,
    config: CONFIG,
    world_size: Annotated[int, typer.Option("--world-size", min=1, help="Number of processes, each with a device.")],
    overrides: OVERRIDES = None,
    sharding_group: Annotated[
        int | None,
        typer.Option(
            "--sharding-group", min=1, help="Processes that share a copy of the tables; by default as in the file."
        ),
    ] = None,
    hbm_gb: Annotated[float, typer.Option("--hbm-gb", min=0.0, help="Memory of a device, in 10^9 bytes.")] = 80.0,
    per_machine: Annotated[int, typer.Option("--per-machine", min=1, help="Devices of a machine.")] = 8,
    model: Annotated[
        str | None, typer.Option("--model", help="Plan this model alone; by default all, as `exfm run`.")
    ] = None,
    length: Annotated[
        list[str] | None,
        typer.Option("--length", metavar="NAME=N", help="Ids of a list, or events of a history; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows how an experiment's models would be sharded, the memory and traffic of a process, and whether it fits."""
    from exfm.config.loading import Experiment, load_experiment
    from exfm.interfaces.layout import Cluster
    from exfm.planning.cluster_plan import as_dict, plan
    from exfm.planning.remedies import Search

    session: Session = context.obj

    def load(more: list[str]) -> Experiment:
        return load_experiment(config, [*(overrides or []), *more], block=session.block)

    cluster = Cluster(world_size, min(per_machine, world_size), int(hbm_gb * 1e9), sharding_group)
    lengths = _lengths(length or [])
    planned = plan(load([]), cluster, model, lengths)
    remedies = []
    # The search plans dozens of changed experiments, which takes a while.
    if planned.problem:
        remedies = Search(load, planned, model, lengths).run()
    described = as_dict(planned, remedies)
    if as_json:
        print_json(described)
    else:
        from exfm.reporting.plan_table import plan_tables

        for table in plan_tables(described):
            console(110).print(table)
    if planned.problem:
        typer.echo(f"does not fit: {planned.problem}", err=True)
        raise typer.Exit(1)


def _lengths(options: list[str]) -> dict[str, int]:
    """Parses NAME=N of each option."""
    lengths = {}
    for option in options:
        name, _, number = option.partition("=")
        if not name or not number.isdigit() or not int(number):
            raise ConfigError(f"--length {option}: write NAME=N, N a whole number from 1, such as history=50")
        lengths[name] = int(number)
    return lengths
