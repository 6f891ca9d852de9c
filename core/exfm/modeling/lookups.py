"""States of teachers as input tokens: what serving has to look up beside the model's own tables.

Legend: B examples, M lookups, D width of a token, S states, R rows of a table, K width of a state, V ids of a feature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from exfm.config.lookups import StateLookup
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.transfer_strategy import EntityStates, Recent


class StateLookups(nn.Module):
    """The newest state that each teacher had of each entity, as a token each.

    In the manner of LoopFM (arXiv 2605.29280): what the teacher made of an entity at its earlier examples is an input
    of the student. Here it is one state, the newest one, and not a sequence of them.

    Args:
        lookups: which states.
        rows: how many table rows each entity's ids fall in, by entity.
        dim: D.
    """

    def __init__(self, lookups: Sequence[StateLookup], rows: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.lookups = tuple(lookups)
        self.tokens = nn.ModuleDict(
            {_key(one.teacher, one.entity): StateToken(rows[one.entity], one.width, dim) for one in lookups}
        )

    @property
    def token_names(self) -> tuple[str, ...]:
        """Of the M tokens, in order."""
        return tuple(lookup.name for lookup in self.lookups)

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Tokens (B, M, D), from the ids of the entities."""
        found = zip(self.lookups, self.tokens.values(), strict=True)
        return torch.stack([token(sparse[lookup.entity]) for lookup, token in found], dim=1)

    def observers(self) -> dict[str, partial[None]]:
        """What is to be told of each teacher's states, by teacher."""
        return {lookup.teacher: partial(self._observe, lookup.teacher) for lookup in self.lookups}

    def _observe(self, teacher: str, states: Mapping[str, EntityStates]) -> None:
        for entity, news in states.items():
            if _key(teacher, entity) in self.tokens:
                token = self.tokens[_key(teacher, entity)]
                assert isinstance(token, StateToken)
                token.keep(news)

    def recall(self, teacher: str, recent: Mapping[str, Recent]) -> None:
        """Told before a batch of what is newer of a teacher's states, by entity."""
        for lookup in self.lookups:
            if lookup.teacher == teacher:
                token = self.tokens[_key(teacher, lookup.entity)]
                assert isinstance(token, StateToken)
                token.recent = recent.get(lookup.entity)


class StateToken(nn.Module):
    """The newest state of every row of a table, zeros before there is one, and the map to the width of a token.

    The states are part of what is published, like a table; they are told, not trained. The map has no bias: where
    there is no state, or no id, the token is zeros.
    """

    state_RK: Tensor

    def __init__(self, rows: int, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("state_RK", torch.zeros(rows, width, dtype=torch.float16))
        self.map = nn.Linear(width, dim, bias=False)
        self.recent: Recent | None = None

    def forward(self, ids: JaggedTensor) -> Tensor:
        """Maps the ids of a feature, at most one per example, to tokens (B, D)."""
        state_VK = self.state_RK.index_select(0, ids.values().long()).to(self.map.weight.dtype)
        if self.recent is not None:
            state_VK = self.recent.over(state_VK)
        token_BD: Tensor = self.map(JaggedSequence(state_VK, ids.offsets().long(), max_length=1).mean())
        return token_BD

    def keep(self, states: EntityStates) -> None:
        """Writes the last state of each row."""
        newest = states.newest()
        device = self.state_RK.device
        self.state_RK[newest.row.to(device)] = newest.state_SK.to(device, self.state_RK.dtype)


def _key(teacher: str, entity: str) -> str:
    """A name that torch accepts for a child module, and that is not taken for a table's."""
    return f"state_{teacher}/{entity}"
