"""Layout: the placement of a model by a parallel plan, estimated without starting processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from exfm.interfaces.table_optimizer import TableOptimizer


@dataclass(frozen=True)
class Cluster:
    """The processes that a layout is estimated for; none of them need exist.

    Attributes:
        count: the number of processes.
        per_machine: the number of processes of each machine.
        memory: bytes of each process; None for unlimited memory.
        group: the number of processes that keep a copy of the model together; None for the plan's fields to decide.
    """

    count: int
    per_machine: int
    memory: int | None
    group: int | None = None


@dataclass(frozen=True)
class TableUse:
    """A table, and the lookups of a process in it in a training step.

    Attributes:
        collection: path of the TorchRec collection in the model.
        table: the table's name in its collection.
        rows: rows of the table.
        width: numbers of a row.
        keys: the number of keys of the collection that look it up.
        bags: bags of each key, each of which gives a row of the table's width. Empty bags count.
        ids: ids of all keys together.
        weighted: whether each id has a weight, a number of 32 bits.
    """

    collection: str
    table: str
    rows: int
    width: int
    keys: int
    bags: int
    ids: float
    weighted: bool = False


@dataclass(frozen=True)
class Workload:
    """The work of a process in a training step.

    Attributes:
        tables: lookups for the process's own examples.
        extra_parameters: the number of trained numbers that belong to no module of the model, such as those of a
            transfer strategy.
        accumulate: batches whose gradients are accumulated before the dense optimizer steps; the table optimizer
            steps with each.
    """

    tables: tuple[TableUse, ...]
    extra_parameters: int = 0
    accumulate: int = 1


@dataclass(frozen=True)
class TableShard:
    """A rectangle of a table: its first row and column, its size, and its process, counted inside the group."""

    process: int
    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True)
class TableSharding:
    """The shards of a table.

    Attributes:
        sharding_type: how the table is cut, in the plan's word.
    """

    collection: str
    table: str
    sharding_type: str
    shards: tuple[TableShard, ...]


@dataclass(frozen=True)
class Collective:
    """A collective operation of a training step.

    Bytes are those that a process sends with the algorithm that uses the links best: rings for reductions and gathers.

    Attributes:
        name: the data, and the operation.
        processes: the number of processes that take part.
        sent_bytes: bytes that each process of a group sends, or a single number for all of them.
        buffer_bytes: bytes of buffers that each process holds during the operation, likewise.
        interval: steps from a call to the next.
    """

    name: str
    processes: int
    sent_bytes: tuple[int, ...]
    buffer_bytes: tuple[int, ...] = (0,)
    interval: int = 1

    @classmethod
    def all_reduce(
        cls, name: str, sizes: Sequence[int], processes: int, buffer_bytes: Sequence[int] = (0,), interval: int = 1
    ) -> Collective:
        """Estimates an all-reduce of ``sizes`` bytes of each process."""
        # A ring all-reduce is a reduce-scatter and an all-gather, each of which sends (n - 1) / n of the tensor.
        sent_bytes = tuple(2 * size * (processes - 1) // processes for size in sizes)
        return cls(f"{name}: all-reduce", processes, sent_bytes, tuple(buffer_bytes), interval)

    @classmethod
    def all_gather(cls, name: str, size: int, processes: int, buffer_bytes: int = 0) -> Collective:
        """Estimates an all-gather of ``size`` bytes of all processes together."""
        return cls(f"{name}: all-gather", processes, (size * (processes - 1) // processes,), (buffer_bytes,))

    @classmethod
    def reduce_scatter(cls, name: str, size: int, processes: int, buffer_bytes: int = 0) -> Collective:
        """Estimates a reduce-scatter of ``size`` bytes of each process."""
        return cls(f"{name}: reduce-scatter", processes, (size * (processes - 1) // processes,), (buffer_bytes,))


@dataclass(frozen=True)
class Layout:
    """The placement of a model.

    The processes form groups of ``group``; each group keeps a copy of the model. All groups are alike, so the other
    fields describe a single group.

    Attributes:
        group: processes of a group.
        tables: shards of all tables.
        dense: the number of elements that each process stores of each sharded dense parameter, by name; every process
            stores the other parameters whole.
        collectives: those of a step.
        settings: fields of the plan that give this layout on this cluster, where the config has other values.
        alternatives: fields of the plan that could place tables where the config cannot.
    """

    group: int
    tables: tuple[TableSharding, ...]
    dense: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    collectives: tuple[Collective, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[Mapping[str, Any], ...] = ()


@runtime_checkable
class LayoutEstimator(Protocol):
    """Optional protocol of a parallel plan's class, not of its instances, for `exfm plan`."""

    @classmethod
    def estimate_layout(
        cls, config: Any, model: nn.Module, table_optimizer: TableOptimizer, workload: Workload, cluster: Cluster
    ) -> Layout:
        """Estimates how ``parallelize`` would place a model on processes that need not exist.

        Args:
            config: the plan's config.
            model: without memory, on the meta device; it is not changed.
            table_optimizer: the optimizer of its tables.
            workload: of a process in a training step.
            cluster: the processes.

        Raises:
            ValueError: the plan refuses the cluster, or the tables do not fit in its memory.
        """
