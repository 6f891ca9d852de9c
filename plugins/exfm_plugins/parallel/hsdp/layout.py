"""Estimates the shards of each block's parameters, and the collectives of FSDP2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

from torch import nn

import exfm
from exfm.parallel import FLOAT_BYTES, estimate_gradient_reduction


@dataclass(frozen=True)
class ShardedDense:
    """Dense layers on a mesh of replicas and shards.

    Args:
        model: without memory.
        units: the sharded modules, in the order of sharding.
        group: the number of processes that share a block.
        count: the number of all processes.
    """

    model: nn.Module
    units: tuple[nn.Module, ...]
    group: int
    count: int

    def shard_sizes(self) -> dict[str, tuple[int, ...]]:
        """Returns the number of elements that each process of a group stores of each sharded parameter, by name."""
        sizes: dict[str, tuple[int, ...]] = {}
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        for parameter in chain.from_iterable(self._units()):
            rows = parameter.shape[0]
            # FSDP2 distributes rows in chunks of the same size, of which the last ones may be short or empty.
            chunk, width = math.ceil(rows / self.group), parameter.numel() // max(rows, 1)
            chunks = [max(0, min(chunk, rows - process * chunk)) for process in range(self.group)]
            sizes[names[id(parameter)]] = tuple(width * rows for rows in chunks)
        return sizes

    def collectives(
        self, tables: Iterable[nn.Parameter], workload: exfm.parallel.Workload, gradient_bytes: int
    ) -> list[exfm.parallel.Collective]:
        """Estimates the collectives: blocks are gathered for both passes, and their gradients scattered and averaged.

        All other gradients are averaged over all processes. Accumulated gradients are scattered in a group for each
        batch, and averaged once over the replicas.

        Args:
            tables: the parameters of tables.
            workload: of a process in a step.
            gradient_bytes: bytes in which an element of a block's gradient is sent.
        """
        units = [sum(self._padded(parameter) for parameter in unit) for unit in self._units()]
        total, largest = sum(units), max(units, default=0)
        # By identity, because comparing tensors compares their elements.
        excluded = {id(parameter) for parameter in chain(tables, *self._units())}
        replicated = workload.extra_parameters
        for parameter in self.model.parameters():
            if parameter.requires_grad and id(parameter) not in excluded:
                replicated += parameter.numel()
        group, replicas = self.group, self.count // self.group
        return [
            # Twice the largest block, because the next block is gathered while a block computes.
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
            estimate_gradient_reduction(replicated, self.count, workload.accumulate),
        ]

    def _padded(self, parameter: nn.Parameter) -> int:
        """Counts the gathered elements: the chunks of all processes are padded to the same size."""
        rows = parameter.shape[0]
        return math.ceil(rows / self.group) * self.group * (parameter.numel() // max(rows, 1))

    def _units(self) -> list[list[nn.Parameter]]:
        """Lists the parameters of each unit, without those of units before it."""
        seen: set[int] = set()
        units: list[list[nn.Parameter]] = []
        for module in self.units:
            # Inner modules come first, so a block's parameters are not those of the backbone around it.
            unit = [parameter for parameter in module.parameters() if id(parameter) not in seen]
            seen.update(map(id, unit))
            units.append(unit)
        return units


def group_size(name: str, replicas: int, cluster: exfm.parallel.Cluster) -> tuple[int, Mapping[str, int]]:
    """Returns the number of processes of a group on a cluster, and the config fields to change for it.

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
    needed = cluster.count // cluster.group
    return cluster.group, {} if needed == replicas else {"replicas": needed}


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
