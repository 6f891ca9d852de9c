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
    measure: Annotated[
        bool, typer.Option("--measure", help="Measure the rates of this machine that are not given.")
    ] = False,
    tflops: Annotated[
        float | None, typer.Option("--tflops", min=0.0, help="10^12 FLOP/s that matrix products reach on a device.")
    ] = None,
    memory_gbps: Annotated[
        float | None, typer.Option("--memory-gbps", min=0.0, help="10^9 bytes/s of a device's memory.")
    ] = None,
    link_gbps: Annotated[
        float | None,
        typer.Option("--link-gbps", min=0.0, help="10^9 bytes/s that a device sends inside its machine."),
    ] = None,
    network_gbps: Annotated[
        float | None,
        typer.Option("--network-gbps", min=0.0, help="10^9 bytes/s that a device sends to other machines."),
    ] = None,
    window_rows: Annotated[
        int | None, typer.Option("--window-rows", min=1, help="Rows of a window: adds its time, and its price.")
    ] = None,
    price: Annotated[float | None, typer.Option("--price", min=0.0, help="Price of a device and hour.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows how an experiment's models would be sharded, the memory and traffic of a process, and whether it fits.

    With rates of a device, it also shows the time of a step, the resource that limits it, and the price of a window.
    """
    from exfm.config.loading import Experiment, load_experiment
    from exfm.interfaces.layout import Cluster
    from exfm.planning.cluster_plan import as_dict, plan
    from exfm.planning.rates import complete_rates
    from exfm.planning.remedies import Search
    from exfm.planning.step_time import time_as_dict

    session: Session = context.obj

    def load(more: list[str]) -> Experiment:
        return load_experiment(config, [*(overrides or []), *more], block=session.block)

    cluster = Cluster(world_size, min(per_machine, world_size), int(hbm_gb * 1e9), sharding_group)
    lengths = _lengths(length or [])
    experiment = load([])
    options = {"tflops": tflops, "memory-gbps": memory_gbps, "link-gbps": link_gbps, "network-gbps": network_gbps}
    rates = complete_rates(options, price, cluster, experiment.arms, measure)
    if rates is None and (window_rows is not None or price is not None):
        raise ConfigError("--window-rows and --price need the time of a step: add --measure, or rates such as --tflops")
    planned = plan(experiment, cluster, model, lengths)
    remedies = []
    # The search plans dozens of changed experiments, which takes a while.
    if planned.problem:
        remedies = Search(load, planned, model, lengths).run()
    described = as_dict(planned, remedies)
    if rates is not None:
        window_s = experiment.config.stream.window.total_seconds()
        described["time"] = time_as_dict(planned, rates, window_s, window_rows)
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
