"""Tells strategies of their teachers' states along a chunk, never of what the student still has to predict.

Legend: B rows of the chunk, S rows that a teacher has.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.interfaces.transfer_strategy import EntityStates, TransferStrategy
from exfm.supervision.joiner import Joiner


@dataclass(frozen=True)
class _Told:
    """What one strategy is told of a chunk: rows of the chunk (S,), and states by entity with the rows they have."""

    strategy: TransferStrategy
    place_S: Tensor
    states: Mapping[str, tuple[Tensor, EntityStates]]


class StateFeed:
    """Goes along the rows of a chunk, whichever of them the student sees.

    Args:
        batch: the whole chunk.
        strategies: the student's.
        teachers: by name; a teacher that gives no states is passed over.
    """

    def __init__(self, batch: Batch, strategies: Iterable[TransferStrategy], teachers: Mapping[str, Joiner]) -> None:
        self._batch = batch
        self._next = 0
        readers = [strategy for strategy in strategies if strategy.reads_states]
        self._told = [self._prepare(strategy, teachers[strategy.config.teacher]) for strategy in readers]

    def tell(self, end: int) -> None:
        """Tells of the rows before ``end`` that have not been told of."""
        for told in self._told:
            bounds = torch.tensor([self._next, end])
            first, last = torch.searchsorted(told.place_S, bounds).tolist()
            if first == last:
                continue
            part = slice(first, last)
            states = {}
            for entity, (known_S, state) in told.states.items():
                known = known_S[part]
                states[entity] = EntityStates(state.row[part][known], state.state_SK[part][known])
            told.strategy.observe(states)
        self._next = end

    def _prepare(self, strategy: TransferStrategy, teacher: Joiner) -> _Told:
        batch = self._batch
        found_B, states = teacher.states(batch.example_id, batch.event_time_us)
        told = {}
        for entity, state_SK in states.items():
            row_S = _rows(batch, entity)[found_B]
            told[entity] = (row_S >= 0, EntityStates(row_S, state_SK))
        return _Told(strategy, found_B.nonzero().squeeze(1), told)


def _rows(batch: Batch, feature: str) -> Tensor:
    """The table row (B,) of a categorical feature, -1 where it is missing."""
    bags = batch.sparse[feature]
    there_B = bags.lengths() > 0
    row_B = torch.full((batch.size,), -1)
    row_B[there_B] = bags.values()[bags.offsets()[:-1][there_B].long()]
    return row_B
