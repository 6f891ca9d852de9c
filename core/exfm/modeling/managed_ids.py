"""Rows of their own for ids that never stop coming: a table forgets old ids as it meets new ones.

Legend: V looked-up ids, U different ids of a batch, N new ones, R rows of the table, W rows of a bucket.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exfm.interfaces.schema import Eviction

_WAYS, _SHARED, _EMPTY = 8, 16, -1


@dataclass(frozen=True)
class Started:
    """Rows (N,) that have got another id, and the shared rows (N,) that these ids have had so far."""

    row_N: Tensor
    like_N: Tensor


class ManagedIds(nn.Module):
    """Which id has which row of a table; no two ids share one, but for those that are new.

    As a set-associative cache: an id's hash gives a bucket of W rows, and it may have any of them. Every id of a batch
    that has none gets one after the batch, in the place of the id of its bucket that ``eviction`` finds least useful;
    ids of the batch itself stay. Until then it reads one of the shared rows, by its hash: the last sixteenth. What is
    kept does not grow, and a batch costs its ids times W. TorchRec's zero-collision hash (``ManagedCollisionModule``)
    keeps the useful ids of all the table, at the cost of sorting it.

    Everything is part of the model's state: a snapshot knows its ids.

    Args:
        rows: R.
        eviction: lru: the id that was seen longest ago goes; lfu: the one seen least often; distance: the one with the
            fewest occurrences over the batches since the last of them.
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
        """The rows (V,) of hashed ids, which are not negative."""
        row_V, known_V = self._found(ids_V)
        return torch.where(known_V, row_V, self._shared_row(ids_V))

    def _bucket_rows(self, ids_V: Tensor) -> Tensor:
        ways_W = torch.arange(_WAYS, device=ids_V.device)
        return (ids_V % self.buckets).unsqueeze(1) * _WAYS + ways_W

    def _found(self, ids_V: Tensor) -> tuple[Tensor, Tensor]:
        """Each id's own row, and whether it has one."""
        rows_VW = self._bucket_rows(ids_V)
        hit_VW = self.key_R[rows_VW] == ids_V.unsqueeze(1)
        return (rows_VW * hit_VW).sum(dim=1), hit_VW.any(dim=1)

    def _shared_row(self, ids_V: Tensor) -> Tensor:
        return self.buckets * _WAYS + ids_V // self.buckets % self.shared

    @torch.no_grad()
    def observe(self, ids_V: Tensor) -> Started:
        """Counts the ids of a batch and gives rows to the new ones; their order does not matter."""
        self.clock += 1
        id_U, count_U = torch.unique(ids_V, return_counts=True)
        row_U, known_U = self._found(id_U)
        self.last_R[row_U[known_U]] = self.clock
        self.count_R[row_U[known_U]] += count_U[known_U]
        id_N, count_N = id_U[~known_U], count_U[~known_U]
        # The most frequent of a bucket first.
        order_N = torch.argsort(count_N, descending=True, stable=True)
        order_N = order_N[torch.argsort(id_N[order_N] % self.buckets, stable=True)]
        started = list(self._place(id_N[order_N], count_N[order_N]))
        rows, ids = zip(*started, strict=True) if started else ((id_N[:0],), (id_N[:0],))
        return Started(torch.cat(rows), self._shared_row(torch.cat(ids)))

    def _place(self, id_N: Tensor, count_N: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Gives a row to one id of each bucket at a time; a bucket has as many as it has rows, and no more.

        Args:
            id_N: by bucket.
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
        """How much rows are worth keeping: an empty one nothing, one of an id of this batch without bound."""
        last, count = self.last_R[rows].double(), self.count_R[rows].double()
        worth = {"lru": last, "lfu": count, "distance": count / (self.clock - last + 1)}[self.eviction]
        worth = torch.where(self.key_R[rows] == _EMPTY, -1.0, worth)
        return torch.where(self.last_R[rows] == self.clock, torch.inf, worth)
