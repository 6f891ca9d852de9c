"""What a model costs where every process keeps all tables, and what its processes tell each other."""

from __future__ import annotations

from collections.abc import Iterable

import exfm

FLOAT, ID, LENGTH = 4, 8, 4
"""Bytes of a weight, of an id, and of how many ids a bag has."""


def whole_tables(step: exfm.TrainingStep, group: int) -> tuple[exfm.TablePlace, ...]:
    """Every table on every process of a group."""
    return tuple(
        exfm.TablePlace(
            use.collection,
            use.table,
            "whole",
            tuple(exfm.TableShard(process, 0, 0, use.rows, use.width) for process in range(group)),
        )
        for use in step.tables
    )


def table_exchanges(step: exfm.TrainingStep, count: int) -> list[exfm.Exchange]:
    """Ids of all processes to each, and the gradients of what they looked up.

    Each looks up the bags of all, so it holds the whole batch's rows, and then their gradients too.
    """
    ids = int(sum(use.ids * ID + use.keys * use.bags * LENGTH for use in step.tables))
    rows = sum(use.keys * use.bags * use.width * FLOAT for use in step.tables)
    return [
        exfm.Exchange.all_gather("ids", ids * count, count, held=ids * count),
        exfm.Exchange.all_gather("gradients of looked-up rows", rows * count, count, held=2 * rows * count),
    ]


def gradients(elements: int, count: int, every: int) -> exfm.Exchange:
    """The average of dense gradients that are whole on each process, put one after the other."""
    size = [elements * FLOAT]
    return exfm.Exchange.all_reduce("dense gradients", size, count, held=size, every=every)


def told(exchanges: Iterable[exfm.Exchange]) -> tuple[exfm.Exchange, ...]:
    """Those that there are: one process tells nothing."""
    return tuple(exchange for exchange in exchanges if exchange.processes > 1)
