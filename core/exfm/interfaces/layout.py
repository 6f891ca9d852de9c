"""Layout: where a parallel plan would put a model, told without the processes that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Cluster:
    """The processes that a layout is for; none of them need exist.

    Attributes:
        count: how many there are.
        per_machine: how many of them one machine has.
        memory: bytes that each has; None for as many as it takes.
        group: how many keep one copy of the model together; None for what the plan's fields say.
    """

    count: int
    per_machine: int
    memory: int | None
    group: int | None = None


@dataclass(frozen=True)
class TableUse:
    """A table, and what a process looks up in it in one step.

    Attributes:
        collection: where the model has the TorchRec collection that the table is in.
        table: its name there.
        rows: of the table.
        width: of a row.
        keys: how many keys of the collection look it up.
        bags: of each key; each gives one row of the table's width. Empty ones count.
        ids: of all keys together.
    """

    collection: str
    table: str
    rows: int
    width: int
    keys: int
    bags: int
    ids: float


@dataclass(frozen=True)
class TrainingStep:
    """What a process does in a training step.

    Attributes:
        tables: what it looks up, of its own examples.
        beside: trained numbers that belong to no module of the model, such as a transfer strategy's.
        accumulate: batches whose gradients add up before the dense layers learn from them; tables learn from each.
    """

    tables: tuple[TableUse, ...]
    beside: int = 0
    accumulate: int = 1


@dataclass(frozen=True)
class TableShard:
    """A rectangle of a table: so many rows and columns, from these on, on a process, counted inside of its group."""

    process: int
    row: int
    column: int
    rows: int
    columns: int


@dataclass(frozen=True)
class TablePlace:
    """How a table is cut, in the plan's word for it, and where its parts go."""

    collection: str
    table: str
    way: str
    shards: tuple[TableShard, ...]


@dataclass(frozen=True)
class Exchange:
    """Something that processes tell each other in a step.

    Bytes are those that a process sends, with algorithms that use the links best: rings for reductions and gathers.

    Attributes:
        name: what is told, and how.
        processes: how many take part in one exchange.
        sent: bytes that each process of a group sends, or one number for all of them.
        held: bytes that each holds for it while it lasts, likewise.
        every: steps from one to the next.
    """

    name: str
    processes: int
    sent: tuple[int, ...]
    held: tuple[int, ...] = (0,)
    every: int = 1

    @classmethod
    def all_reduce(
        cls, name: str, sizes: Sequence[int], processes: int, held: Sequence[int] = (0,), every: int = 1
    ) -> Exchange:
        """Every process ends with the sum of what all have, ``sizes`` bytes each."""
        sent = tuple(2 * size * (processes - 1) // processes for size in sizes)
        return cls(f"{name}: all-reduce", processes, sent, tuple(held), every)

    @classmethod
    def all_gather(cls, name: str, size: int, processes: int, held: int = 0) -> Exchange:
        """Every process ends with what all have, ``size`` bytes of all together."""
        return cls(f"{name}: all-gather", processes, (size * (processes - 1) // processes,), (held,))

    @classmethod
    def reduce_scatter(cls, name: str, size: int, processes: int, held: int = 0) -> Exchange:
        """Every process ends with its part of the sum; each has ``size`` bytes of the whole."""
        return cls(f"{name}: reduce-scatter", processes, (size * (processes - 1) // processes,), (held,))


@dataclass(frozen=True)
class Layout:
    """Where a model goes.

    The processes form groups of ``group``; each group keeps one copy of the model. All groups are alike, so the rest
    describes one.

    Attributes:
        group: processes of a group.
        tables: where tables go, all of them.
        dense: how many elements each process keeps of the dense parameters that are cut, by name; every process keeps
            the others whole.
        exchanges: of a step.
        settings: fields of the plan that give this layout on this cluster, where they are not those it was asked with.
        alternatives: fields of the plan that could place tables where these do not.
    """

    group: int
    tables: tuple[TablePlace, ...]
    dense: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    exchanges: tuple[Exchange, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[Mapping[str, Any], ...] = ()
