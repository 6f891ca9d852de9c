"""Managed ids against a simulation with dictionaries, id by id."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from exfm.modeling.managed_ids import ManagedIds

Eviction = Literal["lru", "lfu", "distance"]
ROWS, WAYS = 53, 8
SHARED = 3 + (ROWS - 3) % WAYS  # at least the last sixteenth, and rows that fill no bucket
BUCKETS = (ROWS - SHARED) // WAYS


class Simulation:
    """The rows of ids, as the class describes them."""

    def __init__(self, eviction: Eviction) -> None:
        self.eviction = eviction
        self.row: dict[int, int] = {}
        self.last: dict[int, int] = {}
        self.count: dict[int, int] = {}
        self.batches = 0

    def look_up(self, id: int) -> int:
        return self.row.get(id, BUCKETS * WAYS + id // BUCKETS % SHARED)

    def observe(self, ids: list[int]) -> list[int]:
        self.batches += 1
        counts = {id: ids.count(id) for id in ids}
        for id in counts.keys() & self.row.keys():
            self.last[id] = self.batches
            self.count[id] += counts[id]
        started = []
        for id in sorted(counts.keys() - self.row.keys(), key=lambda id: (-counts[id], id)):
            first = id % BUCKETS * WAYS
            owner = {row: owner for owner, row in self.row.items()}
            free = [row for row in range(first, first + WAYS) if self.last.get(owner.get(row, -1)) != self.batches]
            if not free:
                continue
            row = min(free, key=lambda row: (self._worth(owner[row]) if row in owner else -1.0, row))
            if row in owner:
                self.row.pop(owner[row])
            self.row[id], self.last[id], self.count[id] = row, self.batches, counts[id]
            started.append(row)
        return started

    def _worth(self, id: int) -> float:
        age = self.batches - self.last[id] + 1
        return {"lru": self.last[id], "lfu": self.count[id], "distance": self.count[id] / age}[self.eviction]


def batches(seed: int, count: int = 60) -> list[Tensor]:
    """Ids of batches: some are frequent, and all of them give way to others in time."""
    random = np.random.default_rng(seed)
    sizes = random.integers(0, 40, count)
    return [torch.from_numpy(random.zipf(1.4, size) % 50 * 977 + step // 10 * 13) for step, size in enumerate(sizes)]


@pytest.mark.parametrize("eviction", ["lru", "lfu", "distance"])
@pytest.mark.parametrize("seed", range(3))
def test_ids_have_the_rows_of_the_simulation(eviction: Eviction, seed: int) -> None:
    managed, simulation = ManagedIds(ROWS, eviction), Simulation(eviction)
    evicted = 0
    for ids in batches(seed):
        assert managed(ids).tolist() == [simulation.look_up(id) for id in ids.tolist()]
        before = set(simulation.row)
        started = managed.observe(ids[torch.randperm(len(ids))])
        assert sorted(started.row_N.tolist()) == sorted(simulation.observe(ids.tolist()))
        assert all(row >= BUCKETS * WAYS for row in started.like_N.tolist())
        evicted += len(before - set(simulation.row))
    assert evicted > 20
    assert {name: value.numel() for name, value in managed.state_dict().items() if name != "clock"} == {
        "key_R": ROWS, "last_R": ROWS, "count_R": ROWS,
    }  # fmt: skip


def test_evictions_prefer_ids_by_their_rule() -> None:
    """Fills a single bucket: the first id is frequent and old, the last id rare and new."""
    kept = {}
    for eviction in ("lru", "lfu", "distance"):
        managed = ManagedIds(16, eviction)
        assert managed.buckets == 1
        managed.observe(torch.tensor([1] * 50))
        for id in range(2, 9):
            managed.observe(torch.tensor([id] * 2))
        managed.observe(torch.tensor([9]))
        kept[eviction] = set(managed.key_R.tolist()) - {-1}
    assert kept == {"lru": {*range(2, 10)}, "lfu": {1, *range(3, 10)}, "distance": {1, *range(3, 10)}}


def test_more_new_ids_than_rows_leave_the_ids_of_the_batch() -> None:
    managed = ManagedIds(16, "lru")
    managed.observe(torch.arange(5))
    started = managed.observe(torch.arange(3, 100))
    assert set(managed.key_R[:8].tolist()) >= {3, 4} and len(started.row_N) == 6
    assert len(set(managed(managed.key_R[:8]).tolist())) == 8, "no two share a row"
