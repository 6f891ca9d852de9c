"""The tables that `exfm plan` prints: where tables go, what a process holds, what it sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from exfm.reporting.formatting import gigabytes

Json = Mapping[str, Any]

_MEMORY = {
    "tables": "tables",
    "table_optimizer": "their optimizer",
    "dense": "dense layers",
    "gradients": "their gradients",
    "dense_optimizer": "their optimizer",
    "activations": "activations",
    "communication": "communication",
}


def plan_tables(plan: Json) -> Iterator[Table | Text]:
    """What ``exfm plan --json`` prints, for a terminal of 100 columns."""
    yield Text(
        f"{plan['plan']} on {plan['world_size']:,} processes: {plan['replicas']:,} sharding group"
        f"{'s' if plan['replicas'] != 1 else ''} of {plan['sharding_group']:,}, {plan['per_machine']} to a machine, "
        f"{gigabytes(plan['memory_bytes'])} each\n"
    )
    for name, model in plan["models"].items():
        yield _places(name, model, plan["sharding_group"])
        yield _memory(name, model)
        if model["exchanges"]:
            yield _exchanges(name, model)
    yield _verdict(plan)


def _empty(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0), box=None)
    table.add_column(first, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _places(name: str, model: Json, group: int) -> Table:
    table = _empty(f"{name}: tables", "table", "rows", "width", "size", "optimizer", "sharding")
    table.add_column("processes of a group", overflow="fold")
    for one in model["tables"]:
        table.add_row(
            Text(one["table"]),
            f"{one['rows']:,}",
            str(one["width"]),
            gigabytes(one["bytes"]),
            gigabytes(one["optimizer_bytes"]),
            one["sharding"],
            spans([shard["process"] for shard in one["shards"]], group),
        )
    return table


def _memory(name: str, model: Json) -> Table:
    table = _empty(f"{name}: memory of a process", "for", "mean", "most")
    for key, words in _MEMORY.items():
        sizes = model["memory"][key]
        table.add_row(words, gigabytes(sum(sizes) / len(sizes)), gigabytes(max(sizes)))
    totals = [sum(sizes) for sizes in zip(*model["memory"].values(), strict=True)]
    table.add_row(Text("all", style="bold"), gigabytes(sum(totals) / len(totals)), gigabytes(max(totals)))
    if model["replication_bytes"]:
        table.add_row("of it, what copies of tables cost", gigabytes(model["replication_bytes"]), "")
    return table


def _exchanges(name: str, model: Json) -> Table:
    table = _empty(
        f"{name}: what a process sends in a step of {model['batch_size']:,} examples, "
        f"{model['examples_per_process']:,} its own",
        "what",
        "processes",
        "mean",
        "most",
        "every",
    )
    for one in model["exchanges"]:
        sent = one["sent_bytes"]
        steps = "step" if one["every"] == 1 else f"{one['every']:,} steps"
        table.add_row(
            one["name"], f"{one['processes']:,}", gigabytes(sum(sent) / len(sent)), gigabytes(max(sent)), steps
        )
    sent = model["sent_bytes_per_step"]
    table.add_row(Text("a step", style="bold"), "", gigabytes(sum(sent) / len(sent)), gigabytes(max(sent)), "")
    ratios = model["imbalance"]
    table.caption = Text(
        f"most over mean: {ratios['table_memory']:.2f} for tables in memory, {ratios['sent']:.2f} for what is sent"
    )
    table.caption_justify = "left"
    return table


def _verdict(plan: Json) -> Text:
    needed = max(plan["needed_bytes"])
    share = needed / plan["memory_bytes"]
    text = Text(f"\n{'fits' if plan['fits'] else 'does not fit'}: ", style="green" if plan["fits"] else "red")
    text.append(
        f"a process needs {gigabytes(needed)} at most, {share:.0%} of its memory; {gigabytes(plan['usable_bytes'])} "
        "may be taken",
        style="default",
    )
    if plan["settings"]:
        pairs = " ".join(f"{key}={value}" for key, value in plan["settings"].items())
        text.append(f"\nto run it so: {pairs}", style="default")
    if not plan["fits"]:
        remedies = plan["remedies"]
        text.append("\nwould fit:" if remedies else "\nno change that was tried makes it fit", style="default")
        for one in remedies:
            text.append(f"\n  {one['change']}  ({gigabytes(one['needed_bytes'])})", style="default")
    return text


def spans(processes: Sequence[int], group: int) -> str:
    """Numbers of processes, those in a row as one span."""
    numbers = sorted(set(processes))
    if len(numbers) == group:
        return "all" if group > 1 else "0"
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
