"""Estimates of tables that every process stores whole, and of the collectives of data parallelism."""

from __future__ import annotations

from collections.abc import Iterable

from exfm.interfaces.layout import Collective, TableShard, TableSharding, Workload

FLOAT_BYTES, ID_BYTES, LENGTH_BYTES = 4, 8, 4
"""Bytes of a weight, of an id, and of the length of a bag."""


def replicated_tables(workload: Workload, group: int) -> tuple[TableSharding, ...]:
    """Places every table whole on every process of a group."""
    shardings: list[TableSharding] = []
    for use in workload.tables:
        shards = tuple(TableShard(process, 0, 0, use.rows, use.width) for process in range(group))
        shardings.append(TableSharding(use.collection, use.table, "whole", shards))
    return tuple(shardings)


def estimate_replicated_tables(workload: Workload, count: int) -> list[Collective]:
    """Estimates the all-gathers of ``ReplicatedTables``: ids of all processes, and gradients of looked-up rows.

    Each process looks up the bags of all, so it holds the whole batch's rows, and then their gradients too.
    """
    ids_bytes, rows = 0.0, 0
    for use in workload.tables:
        bags = use.keys * use.bags
        ids_bytes += use.ids * (ID_BYTES + FLOAT_BYTES * use.weighted) + bags * LENGTH_BYTES
        rows += bags * use.width * FLOAT_BYTES
    # The number of ids is a mean over batches, so it may have a fraction.
    ids = int(ids_bytes)
    return [
        Collective.all_gather("ids", ids * count, count, buffer_bytes=ids * count),
        Collective.all_gather("gradients of looked-up rows", rows * count, count, buffer_bytes=2 * rows * count),
    ]


def estimate_gradient_reduction(elements: int, count: int, interval: int) -> Collective:
    """Estimates the average of dense gradients that each process stores whole, in a flat buffer."""
    size = [elements * FLOAT_BYTES]
    return Collective.all_reduce("dense gradients", size, count, buffer_bytes=size, interval=interval)


def select_collectives(collectives: Iterable[Collective]) -> tuple[Collective, ...]:
    """Selects the collectives of several processes; a single process sends nothing."""
    return tuple(collective for collective in collectives if collective.processes > 1)
