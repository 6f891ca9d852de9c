"""Divides the row groups of a window between the processes of a job."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

from exfm.interfaces.data_source import Shard
from exfm.sources.ids import mix
from exfm.sources.row_groups.order import PlacedGroup


def portion(groups: Sequence[PlacedGroup], shard: Shard) -> list[PlacedGroup]:
    """Returns a shard's row groups, in order; every process divides the same groups alike.

    In the order of time, each group goes to the shard that has the fewest rows until then. So shards have about equally
    many rows of any stretch of the window.

    Args:
        groups: the row groups of the window, in the order of their first event.
    """
    if shard.count == 1 or not groups:
        return list(groups)
    # Among equal shards chance decides, and anew in every window: groups may take turns too, between files that cost
    # more or less to read, and each window may have a group more than there are shards.
    seeds = np.arange((len(groups) + 1) * shard.count) + groups[0].first_us
    chance = mix(seeds.astype(np.int64).view(np.uint64)).tolist()
    loads = [(0, chance[index], index) for index in range(shard.count)]
    heapq.heapify(loads)
    mine: list[PlacedGroup] = []
    for number, group in enumerate(groups, start=1):
        rows, _, index = loads[0]
        if index == shard.index:
            mine.append(group)
        heapq.heapreplace(loads, (rows + group.rows, chance[number * shard.count + index], index))
    return mine
