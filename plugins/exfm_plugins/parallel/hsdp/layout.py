"""Which part of each block's parameters a process keeps, and what FSDP2 tells the others of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

import exfm
from exfm.parallel import FLOAT_BYTES, estimate_gradient_reduction


@dataclass(frozen=True)
class ShardedDense:
    """Dense layers on a mesh of replicas and shards.

    Args:
        model: without memory.
        units: the modules that are sharded, in the order in which they are.
        group: processes that share a block.
        count: all processes.
    """

    model: nn.Module
    units: tuple[nn.Module, ...]
    group: int
    count: int

    def kept(self) -> dict[str, tuple[int, ...]]:
        """How many elements each process of a group keeps of each sharded parameter: rows are dealt in equal chunks."""
        kept = {}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for parameter in (parameter for unit in self._units() for parameter in unit):
            rows = parameter.shape[0]
            chunk, width = math.ceil(rows / self.group), parameter.numel() // max(rows, 1)
            kept[names[id(parameter)]] = tuple(
                width * max(0, min(chunk, rows - process * chunk)) for process in range(self.group)
            )
        return kept

    def collectives(
        self, tables: Iterable[nn.Parameter], workload: exfm.parallel.Workload, gradient_bytes: int
    ) -> list[exfm.parallel.Collective]:
        """Blocks are gathered for both passes; their gradients are scattered, then averaged over the replicas.

        The rest of the gradients is averaged over all processes. Gradients that add up are scattered in a group each
        time, and averaged once.

        Args:
            tables: the parameters of tables.
            workload: of a process in a step.
            gradient_bytes: of a number of a block's gradient on the wire.
        """
        units = [sum(self._padded(parameter) for parameter in unit) for unit in self._units()]
        total, largest = sum(units), max(units, default=0)
        sharded = {id(parameter) for unit in self._units() for parameter in unit} | {id(table) for table in tables}
        rest = workload.extra_parameters + sum(
            parameter.numel()
            for parameter in self.model.parameters()
            if parameter.requires_grad and id(parameter) not in sharded
        )
        group, replicas = self.group, self.count // self.group
        return [
            # A block is there while it computes, and the next one arrives.
            exfm.parallel.Collective.all_gather(
                "dense weights, forward and backward",
                2 * total * FLOAT_BYTES,
                group,
                buffer_bytes=2 * largest * FLOAT_BYTES,
            ),
            exfm.parallel.Collective.reduce_scatter(
                "dense gradients in a group",
                total * gradient_bytes,
                group,
                buffer_bytes=largest * (FLOAT_BYTES + gradient_bytes),
            ),
            exfm.parallel.Collective.all_reduce(
                "dense gradients over groups", [total // group * gradient_bytes], replicas, interval=workload.accumulate
            ),
            estimate_gradient_reduction(rest, self.count, workload.accumulate),
        ]

    def _padded(self, parameter: nn.Parameter) -> int:
        """Elements that are gathered: the chunks of all processes are of one size."""
        rows = parameter.shape[0]
        return math.ceil(rows / self.group) * self.group * (parameter.numel() // max(rows, 1))

    def _units(self) -> list[list[nn.Parameter]]:
        """The parameters of each unit: those of a module that no module before it has taken."""
        taken: set[int] = set()
        units = []
        for module in self.units:
            own = [parameter for parameter in module.parameters() if id(parameter) not in taken]
            taken |= {id(parameter) for parameter in own}
            units.append(own)
        return units


def group_size(name: str, replicas: int, cluster: exfm.parallel.Cluster) -> tuple[int, Mapping[str, int]]:
    """Processes of a group on a cluster, and the field that makes it so where it has another value.

    Raises:
        ValueError: the processes do not form such groups.
    """
    divisors = [size for size in range(1, cluster.count + 1) if cluster.count % size == 0]
    if cluster.group is None:
        check_replicas(name, replicas, cluster.count)
        return cluster.count // replicas, {}
    if cluster.group not in divisors:
        raise ValueError(
            f"{cluster.count} processes do not form groups of {cluster.group}; allowed: {', '.join(map(str, divisors))}"
        )
    wanted = cluster.count // cluster.group
    return cluster.group, {} if wanted == replicas else {"replicas": wanted}


def check_replicas(name: str, replicas: int, count: int) -> None:
    """Checks that processes form so many equal groups.

    Raises:
        ValueError: they do not.
    """
    if count % replicas:
        divisors = [str(size) for size in range(1, count + 1) if count % size == 0]
        raise ValueError(
            f"{name}.replicas: {count} processes do not form {replicas} equal groups; allowed: {', '.join(divisors)}"
        )
