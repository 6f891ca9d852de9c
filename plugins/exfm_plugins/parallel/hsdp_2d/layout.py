"""Estimates the collectives of a sharding group for the lookups of a step.

Legend: P processes of a group, L of them on each machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import exfm
from exfm.parallel import FLOAT_BYTES, ID_BYTES, LENGTH_BYTES

_SENT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
Bytes = npt.NDArray[np.float64]


def table_shardings(plan: Mapping[str, Any]) -> tuple[exfm.parallel.TableSharding, ...]:
    """Converts a plan of ``Placement.search`` to the shardings of a layout."""
    shardings: list[exfm.parallel.TableSharding] = []
    for path, tables in plan.items():
        for table, sharding in tables.items():
            shards = tuple(
                exfm.parallel.TableShard(rank, *offsets, *sizes) for offsets, sizes, rank in sharding["shards"]
            )
            shardings.append(exfm.parallel.TableSharding(path, table, sharding["sharding_type"], shards))
    return tuple(shardings)


@dataclass(frozen=True)
class TableTraffic:
    """Bytes that each process of a group sends in a step.

    With shards of whole tables or of columns, the process of a shard looks up the bags of all processes and sends each
    process its rows. With shards of rows it has partial sums of each bag, which a reduce-scatter adds up. Sums of rows
    that are sharded inside a machine are reduced there first, and only the results go to other machines.

    Args:
        workload: of each process in a step.
        shardings: of all tables.
        group: P.
        per_machine: L.
        communication: the dtype in which rows are sent.
    """

    workload: exfm.parallel.Workload
    shardings: tuple[exfm.parallel.TableSharding, ...]
    group: int
    per_machine: int
    communication: str

    def collectives(self) -> list[exfm.parallel.Collective]:
        """Estimates the collectives: ids are sent to the shards, rows back, and the rows' gradients to the shards."""
        ids, rows, gradients, sums, held = np.zeros((5, self.group))
        uses = {(use.collection, use.table): use for use in self.workload.tables}
        element_bytes, others = _SENT_BYTES[self.communication], self.group - 1
        for sharding in self.shardings:
            use = uses[sharding.collection, sharding.table]
            bags = use.keys * use.bags
            in_machine = sharding.sharding_type == "table_row_wise"
            for shard in sharding.shards:
                # A shard of rows is sent the ids of its rows alone, and the lengths of all bags.
                id_bytes = ID_BYTES + FLOAT_BYTES * use.weighted
                asked = use.ids * shard.rows / use.rows * id_bytes + bags * LENGTH_BYTES
                ids += asked
                ids[shard.process] -= asked  # a process sends nothing to itself
                row_bytes = bags * shard.columns
                held[shard.process] += self.group * (row_bytes * FLOAT_BYTES + asked)
                if in_machine:
                    # Each process of the machine has a share of the machine's sums, which it sends to other machines.
                    machine, sent = self.per_machine, row_bytes * element_bytes
                    sums[shard.process] += (machine - 1) / machine * self.group * sent
                    rows[shard.process] += (self.group // machine - 1) * sent
                    gradients += sent / machine
                    gradients[self._machine(shard.process)] -= sent / machine
                else:
                    rows[shard.process] += others * row_bytes * element_bytes
                    gradients += row_bytes * element_bytes
                    gradients[shard.process] -= row_bytes * element_bytes
        held += sum(use.keys * use.bags * use.width * FLOAT_BYTES for use in self.workload.tables)
        return [
            self._all_to_all("ids", ids),
            self._all_to_all("looked-up rows", rows, held),
            self._all_to_all("gradients of looked-up rows", gradients),
            *([self._in_machine(sums)] if sums.any() else []),
        ]

    def average(self, optimizer: str, replicas: int, interval: int) -> exfm.parallel.Collective:
        """Estimates the average of the tables and of their optimizer's state over the replicas."""
        kept = np.zeros(self.group)
        for sharding in self.shardings:
            for shard in sharding.shards:
                # Numbers of optimizer state for each row; AdaGrad has as many as weights.
                state = {"sgd": 0, "rowwise_adagrad": 1}.get(optimizer, shard.columns)
                kept[shard.process] += shard.rows * (shard.columns + state) * FLOAT_BYTES
        return exfm.parallel.Collective.all_reduce("tables over groups", _whole(kept), replicas, interval=interval)

    def _all_to_all(self, name: str, sent: Bytes, held: Bytes | None = None) -> exfm.parallel.Collective:
        kept = (0,) if held is None else _whole(held)
        return exfm.parallel.Collective(f"{name}: all-to-all", self.group, _whole(sent), kept)

    def _in_machine(self, sums: Bytes) -> exfm.parallel.Collective:
        """Estimates the reduce-scatter of partial sums and the all-gather of their gradients, which sends as much."""
        name = "parts of rows and their gradients: reduce-scatter, all-gather"
        return exfm.parallel.Collective(name, self.per_machine, _whole(2 * sums))

    def _machine(self, process: int) -> slice:
        first = process // self.per_machine * self.per_machine
        return slice(first, first + self.per_machine)


def _whole(sizes: Bytes) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes.round())
