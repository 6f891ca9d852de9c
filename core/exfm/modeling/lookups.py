"""States of teachers as input tokens: what serving has to look up beside the model's own tables.

Legend: B examples, M lookups, D width of a token, K width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from exfm.config.state_lookups import StateLookup
from exfm.interfaces.jagged import JaggedSequence
from exfm.modeling.vector_table import VectorTable


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
            {_key(one): StateToken(one.entity, rows[one.entity], one.width, dim) for one in lookups}
        )

    @property
    def token_names(self) -> tuple[str, ...]:
        """Of the M tokens, in order."""
        return tuple(lookup.name for lookup in self.lookups)

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Tokens (B, M, D), from the ids of the entities."""
        pairs = zip(self.lookups, self.tokens.values(), strict=True)
        return torch.stack([token(sparse[lookup.entity]) for lookup, token in pairs], dim=1)

    def tables(self) -> dict[StateLookup, VectorTable]:
        """The stored states, by lookup."""
        tables = {}
        for lookup in self.lookups:
            token = self.tokens[_key(lookup)]
            assert isinstance(token, StateToken)
            tables[lookup] = token.states
        return tables


class StateToken(nn.Module):
    """The newest state of every row of a table, zeros before there is one, and the map to the width of a token.

    The states are part of what is published, like a table. The map has no bias: where there is no state, or no id, the
    token is zeros.
    """

    def __init__(self, entity: str, rows: int, width: int, dim: int) -> None:
        super().__init__()
        self.entity = entity
        self.states = VectorTable(rows, width)
        self.map = nn.Linear(width, dim, bias=False)

    def forward(self, ids: JaggedTensor) -> Tensor:
        """Maps the ids of a feature, at most one per example, to tokens (B, D)."""
        state_VK = self.states(ids.values().long(), self.entity, self.map.weight.dtype)
        token_BD: Tensor = self.map(JaggedSequence(state_VK, ids.offsets().long(), max_length=1).mean())
        return token_BD


def _key(lookup: StateLookup) -> str:
    """A name that torch accepts for a child module, and that is not taken for a table's."""
    return f"state_{lookup.teacher}/{lookup.entity}"
