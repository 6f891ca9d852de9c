"""Collects the rows of tables that training may have changed, without looking at the tables.

Legend: R processes, T tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor

from exfm.interfaces.process_group import ProcessGroup

_MANY = 1 << 20
"""Row numbers that are collected before repeated numbers are dropped: 8 MiB."""

_NO_ROWS = torch.zeros(0, dtype=torch.int64)

WriteCounts = dict[str, list[int]]
"""Torch's counts of writes (``Tensor._version``) to the tensors of each table that this process stores."""


class ChangedRows:
    """Collects row numbers by table. Memory grows with the different rows, and not with the lookups.

    FBGEMM's kernels do not count as writes to torch. So the counts differ where rows were written in another way than
    by training: then nobody knows which rows have changed.

    Args:
        count_writes: counts the writes to every table, in the same order on every process.
    """

    def __init__(self, count_writes: Callable[[], WriteCounts]) -> None:
        self._count_writes = count_writes
        # The counts when all later changes were known.
        self._writes: WriteCounts = {}
        self._rows: dict[str, list[Tensor]] = {}
        # By table, how many more numbers are collected until repeated ones are dropped.
        self._room: dict[str, int] = {}

    def add(self, table: str, rows: Tensor) -> None:
        """Adds rows (N,), with repetitions, of a table."""
        collected = self._rows.setdefault(table, [])
        collected.append(rows)
        self._room[table] = self._room.get(table, _MANY) - rows.numel()
        if self._room[table] < 0:
            distinct = _distinct(collected)
            self._rows[table] = [distinct]
            # As many as there are, so that each number is sorted a constant number of times on average.
            self._room[table] = _MANY + distinct.numel()

    def add_lookups(self, features: KeyedJaggedTensor, tables: Mapping[str, str]) -> None:
        """Adds the rows that are looked up, in the table of each key."""
        bounds, ids = features.offset_per_key(), features.values()
        for key, start, stop in zip(features.keys(), bounds, bounds[1:], strict=False):
            self.add(tables[key], ids[start:stop])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Allows writes in another way than by training, whose rows the caller adds."""
        before = self._count_writes()
        yield
        # Tables of a kernel share a count, so that a write counts for all of them.
        for table, count in self._count_writes().items():
            if self._writes.get(table) == before[table]:
                self._writes[table] = count

    def take(self) -> dict[str, Tensor]:
        """Returns the changed rows of each table that nobody else has written to, and begins anew.

        The rows are ascending, each once, on the CPU. At the first call no table is tracked.
        """
        writes, taken = self._count_writes(), {}
        for table, count in writes.items():
            if self._writes.get(table) == count:
                taken[table] = _distinct(self._rows.get(table, [_NO_ROWS]))
        self._writes = writes
        self._rows.clear()
        self._room.clear()
        return taken

    def take_all(self, process_group: ProcessGroup) -> dict[str, Tensor]:
        """Returns the rows that any process has changed, of tables that no process has written to otherwise.

        A collective operation; every process gets the same rows.
        """
        mine = self.take()
        if not self._writes:
            return {}
        rows = [mine.get(table, _NO_ROWS) for table in self._writes]
        counts = [[number.numel(), int(table in mine)] for table, number in zip(self._writes, rows, strict=True)]
        counts_RT, tracked_RT = process_group.all_gather(torch.tensor(counts)).unbind(dim=2)
        # A single collective for all tables: the rows arrive by process, and of it by table.
        everyone = process_group.all_gather_rows(torch.cat(rows), counts_RT.sum(dim=1).tolist())
        pieces = torch.split(everyone, counts_RT.flatten().tolist())
        changed: dict[str, Tensor] = {}
        for number, table in enumerate(self._writes):
            if tracked_RT[:, number].all():
                changed[table] = _distinct(list(pieces[number :: len(rows)]))
        return changed


def tables_by_key(configs: Iterable[EmbeddingBagConfig]) -> dict[str, str]:
    """Maps the keys of a collection to their tables."""
    tables: dict[str, str] = {}
    for config in configs:
        tables |= dict.fromkeys(config.feature_names, config.name)
    return tables


def _distinct(rows: list[Tensor]) -> Tensor:
    distinct: Tensor = torch.unique(torch.cat(rows).to(torch.int64)).cpu()
    return distinct
