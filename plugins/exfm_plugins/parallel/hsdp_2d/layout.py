"""What the processes of a sharding group tell each other for a step's lookups.

Legend: P processes of a group, L of them on one machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

import exfm
from exfm.parallel import FLOAT_BYTES, ID_BYTES, LENGTH_BYTES

_WIRE = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
Bytes = npt.NDArray[np.float64]


def places_of(found: Mapping[str, Any]) -> tuple[exfm.parallel.TableSharding, ...]:
    """What the placement has found, as a layout has it."""
    return tuple(
        exfm.parallel.TableSharding(
            path,
            table,
            one["sharding_type"],
            tuple(exfm.parallel.TableShard(rank, *offsets, *sizes) for offsets, sizes, rank in one["shards"]),
        )
        for path, tables in found.items()
        for table, one in tables.items()
    )


@dataclass(frozen=True)
class TableTraffic:
    """Bytes that each process of a group sends in a step.

    Cut by tables or columns, a shard's process looks up the bags of all and sends each process its own. Cut by rows, it
    has a part of each bag's sum: the parts are added up on the way. Rows cut inside one machine are added up there
    first, and only sums go to the other machines.

    Args:
        workload: of each process in a step.
        places: of all tables.
        group: P.
        per_machine: L.
        communication: the numbers in which rows travel.
    """

    workload: exfm.parallel.Workload
    places: tuple[exfm.parallel.TableSharding, ...]
    group: int
    per_machine: int
    communication: str

    def collectives(self) -> list[exfm.parallel.Collective]:
        """Ids to the rows, rows back, and the rows' gradients to where they lie."""
        ids, found, gradients, sums = (np.zeros(self.group) for _ in range(4))
        held = np.zeros(self.group)
        uses = {(use.collection, use.table): use for use in self.workload.tables}
        wire, others = _WIRE[self.communication], self.group - 1
        for place in self.places:
            use = uses[place.collection, place.table]
            bags = use.keys * use.bags
            in_machine = place.sharding_type == "table_row_wise"
            for shard in place.shards:
                asked = use.ids * shard.rows / use.rows * ID_BYTES + bags * LENGTH_BYTES
                ids += asked
                ids[shard.process] -= asked
                row_bytes = bags * shard.columns
                held[shard.process] += self.group * (row_bytes * FLOAT_BYTES + asked)
                if in_machine:
                    # Of the machine's sums each of its processes has a share, and sends it on.
                    machine, sent = self.per_machine, row_bytes * wire
                    sums[shard.process] += (machine - 1) / machine * self.group * sent
                    found[shard.process] += (self.group // machine - 1) * sent
                    gradients += sent / machine
                    gradients[self._machine(shard.process)] -= sent / machine
                else:
                    found[shard.process] += others * row_bytes * wire
                    gradients += row_bytes * wire
                    gradients[shard.process] -= row_bytes * wire
        held += sum(use.keys * use.bags * use.width * FLOAT_BYTES for use in self.workload.tables)
        return [
            self._all_to_all("ids", ids),
            self._all_to_all("looked-up rows", found, held),
            self._all_to_all("gradients of looked-up rows", gradients),
            *([self._in_machine(sums)] if sums.any() else []),
        ]

    def average(self, optimizer: str, replicas: int, interval: int) -> exfm.parallel.Collective:
        """The average of the tables and of their optimizer's state over the replicas."""
        kept = np.zeros(self.group)
        for place in self.places:
            for shard in place.shards:
                state = {"sgd": 0, "rowwise_adagrad": 1}.get(optimizer, shard.columns)
                kept[shard.process] += shard.rows * (shard.columns + state) * FLOAT_BYTES
        return exfm.parallel.Collective.all_reduce("tables over groups", _whole(kept), replicas, interval=interval)

    def _all_to_all(self, name: str, sent: Bytes, held: Bytes | None = None) -> exfm.parallel.Collective:
        kept = (0,) if held is None else _whole(held)
        return exfm.parallel.Collective(f"{name}: all-to-all", self.group, _whole(sent), kept)

    def _in_machine(self, sums: Bytes) -> exfm.parallel.Collective:
        """Parts of rows are added up on the way out, and their gradients gathered on the way back: as many bytes."""
        name = "parts of rows and their gradients: reduce-scatter, all-gather"
        return exfm.parallel.Collective(name, self.per_machine, _whole(2 * sums))

    def _machine(self, process: int) -> slice:
        first = process // self.per_machine * self.per_machine
        return slice(first, first + self.per_machine)


def _whole(sizes: Bytes) -> tuple[int, ...]:
    return tuple(int(size) for size in sizes.round())
