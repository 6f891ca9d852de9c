"""Assigns table rows to an unbounded stream of ids: a table evicts old ids as new ids come.

Legend: V looked-up ids, U different ids of a batch, N new ids, R rows of the table, W rows of a bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exfm.interfaces.schema import Eviction

# W = 8 rows as in the set-associative caches of processors, and a sixteenth of all rows for new ids (ours).
_WAYS, _SHARED, _EMPTY = 8, 16, -1


@dataclass(frozen=True)
class Started:
    """Holds rows (N,) that were reassigned to new ids, and the shared rows (N,) that these ids have read so far."""

    row_N: Tensor
    like_N: Tensor


class ManagedIds(nn.Module):
    """Maps ids to rows of a table without collisions, except for new ids.

    The map is a set-associative cache: an id's hash selects a bucket of W rows, and the id may have any of them. After
    a batch, each of its ids without a row evicts the id of its bucket that ``eviction`` ranks lowest; ids of the batch
    itself stay. Until then a new id reads a shared row, by its hash: the shared rows are the table's last sixteenth.
    The map does not grow, and a batch costs its ids times W. TorchRec's zero-collision hash
    (``ManagedCollisionModule``) keeps the most useful ids of the whole table, at the cost of sorting it.

    All buffers are saved with the model's state, so that a snapshot has its ids.

    Args:
        rows: R.
        eviction: evicts first, for lru: the id that was seen longest ago; lfu: the id with the fewest occurrences;
            distance: the id with the fewest occurrences over the batches since its last occurrence.
    """

    key_R: Tensor
    last_R: Tensor
    count_R: Tensor
    clock: Tensor

    def __init__(self, rows: int, eviction: Eviction) -> None:
        super().__init__()
        self.eviction = eviction
        self.buckets = (rows - max(1, rows // _SHARED)) // _WAYS
        self.shared = rows - self.buckets * _WAYS
        self.register_buffer("key_R", torch.full((rows,), _EMPTY, dtype=torch.int64))
        self.register_buffer("last_R", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("count_R", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("clock", torch.zeros((), dtype=torch.int64))

    def forward(self, ids_V: Tensor) -> Tensor:
        """Maps hashed ids (V,), which are not negative, to their rows (V,)."""
        row_V, assigned_V = self._assigned_rows(ids_V)
        return torch.where(assigned_V, row_V, self._shared_row(ids_V))

    def _bucket_rows(self, ids_V: Tensor) -> Tensor:
        ways_W = torch.arange(_WAYS, device=ids_V.device)
        return (ids_V % self.buckets).unsqueeze(1) * _WAYS + ways_W

    def _assigned_rows(self, ids_V: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the row that is assigned to each id, and the mask of the ids that have a row."""
        rows_VW = self._bucket_rows(ids_V)
        hit_VW = self.key_R[rows_VW] == ids_V.unsqueeze(1)
        # At most a single hit in a bucket, so that the sum selects it, without a synchronisation of the device.
        return (rows_VW * hit_VW).sum(dim=1), hit_VW.any(dim=1)

    def _shared_row(self, ids_V: Tensor) -> Tensor:
        # The quotient, because ids of a bucket have the same remainder and would all share a row.
        return self.buckets * _WAYS + ids_V // self.buckets % self.shared

    @torch.no_grad()
    def observe(self, ids_V: Tensor) -> Started:
        """Counts the ids of a batch and assigns rows to the new ids; the order of ids does not matter."""
        self.clock += 1
        id_U, count_U = torch.unique(ids_V, return_counts=True)
        row_U, assigned_U = self._assigned_rows(id_U)
        # Before rows are assigned: a row with this clock is not evicted by the batch's new ids.
        self.last_R[row_U[assigned_U]] = self.clock
        self.count_R[row_U[assigned_U]] += count_U[assigned_U]
        id_N, count_N = id_U[~assigned_U], count_U[~assigned_U]
        # By bucket, and the most frequent of a bucket first, because a bucket may be too small for all its new ids.
        order_N = torch.argsort(count_N, descending=True, stable=True)
        order_N = order_N[torch.argsort(id_N[order_N] % self.buckets, stable=True)]
        started = list(self._assign(id_N[order_N], count_N[order_N]))
        rows, ids = zip(*started, strict=True) if started else ((id_N[:0],), (id_N[:0],))
        return Started(torch.cat(rows), self._shared_row(torch.cat(ids)))

    def _assign(self, id_N: Tensor, count_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Assigns rows to ids, in each round to the first id of every bucket, and yields rows and ids of each round.

        There are as many rounds as a bucket has rows: more new ids of a bucket than rows stay without a row.

        Args:
            id_N: new ids, sorted by bucket.
            count_N: how often each id is in the batch.
        """
        for _ in range(_WAYS):
            if not id_N.numel():
                return
            bucket_N = id_N % self.buckets
            first_N = torch.ones_like(bucket_N, dtype=torch.bool)
            first_N[1:] = bucket_N[1:] != bucket_N[:-1]
            id, count = id_N[first_N], count_N[first_N]
            rows = self._bucket_rows(id)
            useful, order = torch.sort(self._useful(rows), dim=1, stable=True)
            row = rows.gather(1, order[:, :1]).squeeze(1)
            free = useful[:, 0] < torch.inf
            row, id = row[free], id[free]
            self.key_R[row], self.last_R[row], self.count_R[row] = id, self.clock, count[free]
            yield row, id
            id_N, count_N = id_N[~first_N], count_N[~first_N]

    def _useful(self, rows: Tensor) -> Tensor:
        """Ranks rows by the use of their ids: an empty row lowest, rows of this batch's ids infinite."""
        # float64, because the clock and counts are int64 and float32 is exact below 2^24 only.
        last, count = self.last_R[rows].double(), self.count_R[rows].double()
        worth = {"lru": last, "lfu": count, "distance": count / (self.clock - last + 1)}[self.eviction]
        worth = torch.where(self.key_R[rows] == _EMPTY, -1.0, worth)
        return torch.where(self.last_R[rows] == self.clock, torch.inf, worth)
