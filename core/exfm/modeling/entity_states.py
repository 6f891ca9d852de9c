"""Computes compact features: short vectors of a user or an item that other models can read.

Legend: B examples, E events, D width of a token, K width of a state, H hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from exfm.interfaces.jagged import JaggedSequence
from exfm.layers.mlp import mlp
from exfm.modeling.labels import Labels

_HIDDEN, _RECENT = 64, 5  # hidden width of a tower, and the newest events that are averaged apart (ours)


class EntityStates(nn.Module):
    """Computes a state (K,) for each of several entities, such as user and item, from the entity's features alone.

    A tower per entity maps its tokens, and of each sequence the average of all events and of the newest five, through
    an MLP. The states together explain the labels and the model's own predictions, as a factorization machine does:
    ``z = sum_{a < b} <w * s_a, s_b> + sum_a <v_a, s_a>``, so that a state means the same whatever other entity it
    meets. An entity's history is in its state at once, where a table row would have to be trained to it.

    Towers read tokens and events without gradient (stop-gradient): the model itself learns as if it had no towers.

    Args:
        entities: the names of the tokens and sequences that describe each entity, by the entity's name.
        tokens: names of the model's tokens.
        sequences: names of its raw sequences.
        tasks: the model's binary tasks.
        dim: D.
        width: K.
    """

    def __init__(
        self,
        entities: Mapping[str, Sequence[str]],
        tokens: Sequence[str],
        sequences: Sequence[str],
        tasks: Sequence[str],
        dim: int,
        width: int,
    ) -> None:
        super().__init__()
        self.width = width
        self.tasks = tuple(tasks)
        self.towers = nn.ModuleDict()
        for entity, described in entities.items():
            positions = [position for position, token in enumerate(tokens) if token in described]
            histories = [sequence for sequence in sequences if sequence in described]
            self.towers[_key(entity)] = _Tower(positions, histories, dim, width)
        self.entities = tuple(entities)
        self.product_TK = nn.Parameter(torch.ones(len(tasks), width))
        self.linear_TNK = nn.Parameter(torch.zeros(len(tasks), len(entities), width))
        self.bias_T = nn.Parameter(torch.zeros(len(tasks)))

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> dict[str, Tensor]:
        """Maps tokens (B, N, D) and raw sequences to states (B, K) by entity."""
        events = {name: sequence.with_values(sequence.values_ED.detach()) for name, sequence in sequences.items()}
        return {entity: self.towers[_key(entity)](tokens_BND.detach(), events) for entity in self.entities}

    def loss(self, states: Mapping[str, Tensor], logits: Mapping[str, Tensor], labels: Labels) -> Tensor:
        """Returns the cross-entropy against the mean of label and the model's probability, summed over binary tasks."""
        stacked_BNK = torch.stack([states[entity] for entity in self.entities], dim=1)
        pairs = [stacked_BNK[:, a] * stacked_BNK[:, b] for a, b in combinations(range(len(self.entities)), 2)]
        product_BK = torch.stack(pairs).sum(dim=0) if pairs else torch.zeros_like(stacked_BNK[:, 0])
        explained_BT = product_BK @ self.product_TK.T + torch.einsum("bnk,tnk->bt", stacked_BNK, self.linear_TNK)
        terms = []
        for position, task in enumerate(self.tasks):
            if task in labels.values:
                target_B = labels.explained(task, logits[task])
                logit_B = explained_BT[:, position] + self.bias_T[position]
                terms.append(labels.cross_entropy(task, logit_B, target_B))
        return torch.stack(terms).sum() if terms else explained_BT.sum() * 0.0


class _Tower(nn.Module):
    """Maps an entity's tokens and sequences to its state."""

    def __init__(self, positions: Sequence[int], histories: Sequence[str], dim: int, width: int) -> None:
        super().__init__()
        self.positions, self.histories = list(positions), list(histories)
        self.events = nn.ModuleList(mlp([dim, _HIDDEN, _HIDDEN], "silu") for _ in histories)
        self.out = mlp([len(positions) * dim + 2 * _HIDDEN * len(histories), 2 * _HIDDEN, width], "silu")

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        columns = [tokens_BND[:, self.positions].flatten(1)]
        for name, network in zip(self.histories, self.events, strict=True):
            hidden = sequences[name].with_values(network(sequences[name].values_ED))
            columns += [hidden.mean(), hidden.recent(_RECENT).mean()]
        state_BK: Tensor = self.out(torch.cat(columns, dim=1))
        return state_BK


def _key(entity: str) -> str:
    """Returns the name of an entity's child module: prefixed, because torch refuses a child called `items`."""
    return f"entity_{entity}"
