"""Renders the tables of `exfm plan`: the shards of tables, the memory of a process, and the bytes that it sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table
from rich.text import Text

from exfm.mappings import values_at
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
    """Yields the tables of a plan, the content of ``exfm plan --json``, for a terminal of 100 columns."""
    groups = "sharding group"
    if plan["replicas"] != 1:
        groups += "s"
    yield Text(
        f"{plan['plan']} on {plan['world_size']:,} processes: {plan['replicas']:,} {groups} of "
        f"{plan['sharding_group']:,}, {plan['per_machine']} to a machine, {gigabytes(plan['memory_bytes'])} each\n"
    )
    for name, model in plan["models"].items():
        yield _shards(name, model, plan["sharding_group"])
        yield _memory(name, model)
        if model["exchanges"]:
            yield _exchanges(name, model)
        if model["serving_lookups"]:
            yield Text(f"{name} costs lookups at serving: {', '.join(model['serving_lookups'])}\n")
    if "time" in plan:
        yield _time(plan["time"])
    yield _verdict(plan)


def _numbers_table(title: str, first: str, *numbers: str) -> Table:
    """Builds a table of a text column and right-aligned columns of numbers."""
    table = Table(title=title, title_justify="left", title_style="bold", padding=(0, 1, 0, 0), box=None)
    table.add_column(first, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _shards(name: str, model: Json, group: int) -> Table:
    """Builds a row for each embedding table: its size, its sharding, and the processes with a shard of it."""
    table = _numbers_table(f"{name}: tables", "table", "rows", "width", "size", "optimizer", "sharding")
    table.add_column("processes of a group", overflow="fold")
    for embedding in model["tables"]:
        table.add_row(
            Text(embedding["table"]),  # a name in brackets is no markup
            f"{embedding['rows']:,}",
            str(embedding["width"]),
            gigabytes(embedding["bytes"]),
            gigabytes(embedding["optimizer_bytes"]),
            embedding["sharding"],
            spans(values_at(embedding["shards"], "process"), group),
        )
    return table


def _memory(name: str, model: Json) -> Table:
    """Builds a row for each use of memory: its mean and its maximum over the processes."""
    table = _numbers_table(f"{name}: memory of a process", "for", "mean", "most")
    for key, words in _MEMORY.items():
        sizes = model["memory"][key]
        table.add_row(words, gigabytes(sum(sizes) / len(sizes)), gigabytes(max(sizes)))
    # Totals are summed by process first: the process with the most tables need not have the most activations.
    totals = list(map(sum, zip(*model["memory"].values(), strict=True)))
    table.add_row(Text("all", style="bold"), gigabytes(sum(totals) / len(totals)), gigabytes(max(totals)))
    if model["replication_bytes"]:
        table.add_row("of it, what copies of tables cost", gigabytes(model["replication_bytes"]), "")
    return table


def _exchanges(name: str, model: Json) -> Table:
    """Builds a row for each collective operation: its group, and the bytes that a process sends."""
    table = _numbers_table(
        f"{name}: what a process sends in a step of {model['batch_size']:,} examples, "
        f"{model['examples_per_process']:,} its own",
        "what",
        "processes",
        "mean",
        "most",
        "every",
    )
    for exchange in model["exchanges"]:
        sent = exchange["sent_bytes"]
        steps = "step" if exchange["every"] == 1 else f"{exchange['every']:,} steps"
        mean = gigabytes(sum(sent) / len(sent))
        table.add_row(exchange["name"], f"{exchange['processes']:,}", mean, gigabytes(max(sent)), steps)
    sent = model["sent_bytes_per_step"]
    table.add_row(Text("a step", style="bold"), "", gigabytes(sum(sent) / len(sent)), gigabytes(max(sent)), "")
    ratios = model["imbalance"]
    table.caption = Text(
        f"most over mean: {ratios['table_memory']:.2f} for tables in memory, {ratios['sent']:.2f} for what is sent"
    )
    table.caption_justify = "left"
    return table


def _time(time: Json) -> Table:
    """Builds a row for each model: the time of a step by resource, and the resource that limits it."""
    resources = list(next(iter(time["models"].values()))["seconds"])
    table = _numbers_table("time of a step, in ms", "model", *resources, "step", "examples/s")
    table.add_column("limit")
    for name, model in time["models"].items():
        milliseconds = [f"{1e3 * seconds:,.2f}" for seconds in model["seconds"].values()]
        least, most = (1e3 * seconds for seconds in model["step_s"])
        slowest, fastest = model["examples_per_s"]
        rates = f"{slowest:,.0f} to {fastest:,.0f}"
        table.add_row(Text(name), *milliseconds, f"{least:,.2f} to {most:,.2f}", rates, model["limit"])
    window = time["window"]
    lines = ["a step takes the first where all resources work at once, and the second where they work in turn"]
    if window is not None:
        least, most = window["seconds"]
        shares = " to ".join(f"{100 * share:,.3g}" for share in window["share_of_stream"])
        lines.append(f"a window of {window['rows']:,} rows: {least:,.1f} to {most:,.1f} s, {shares}% of its time")
        if window["price"] is not None:
            least, most = window["price_per_day"]
            price = " to ".join(f"{each:,.4g}" for each in window["price"])
            lines.append(f"price: {price} a window, {least:,.4g} to {most:,.4g} a day")
    table.caption, table.caption_justify = Text("\n".join(lines)), "left"
    return table


def _verdict(plan: Json) -> Text:
    """Writes whether the plan fits, the settings that run it, and the changes that would make it fit."""
    # The process with the most decides, because a job fails with its first process.
    needed = max(plan["needed_bytes"])
    share = needed / plan["memory_bytes"]
    text = Text("\nfits: ", style="green") if plan["fits"] else Text("\ndoes not fit: ", style="red")
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
        for remedy in remedies:
            text.append(f"\n  {remedy['change']}  ({gigabytes(remedy['needed_bytes'])})", style="default")
    return text


def spans(processes: Sequence[int], group: int) -> str:
    """Formats numbers of processes, consecutive numbers as a span: ``0, 2-5``; ``all`` where they are a whole group."""
    numbers = sorted(set(processes))
    if len(numbers) == group > 1:
        return "all"
    texts = []
    # In consecutive numbers, the difference of number and position is constant.
    for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        (_, first), *others = run
        if others:
            texts.append(f"{first}-{others[-1][1]}")
        else:
            texts.append(str(first))
    return ", ".join(texts)
