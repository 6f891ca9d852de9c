"""Sums the tokens of the candidate item, and combines the events of a history with it.

Legend: B examples, N tokens, E events, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exfm.interfaces.jagged import JaggedSequence


def sum_tokens(tokens_BND: Tensor, indices: Sequence[int]) -> Tensor:
    """Sums some of an example's tokens (B, N, D), such as those of the candidate item, to (B, D).

    Args:
        tokens_BND: the tokens.
        indices: indices along N, not empty.
    """
    return torch.stack([tokens_BND[:, index] for index in indices]).sum(0)


class CandidateMeeting(nn.Module):
    """Computes ``[e + W (e * t) || t]`` for the events ``e`` and the candidate item ``t`` of each example.

    The candidate item becomes the last event. Ours: the product makes the similarity of event and item available
    before attention has learned to compute it.

    Args:
        places: indices of the tokens whose sum is the candidate item, not empty.
        dim: D.
    """

    def __init__(self, places: Sequence[int], dim: int) -> None:
        super().__init__()
        self.places = tuple(places)
        self.linear = nn.Linear(dim, dim, bias=False)

    def forward(self, sequence: JaggedSequence, tokens_BND: Tensor) -> JaggedSequence:
        """Maps events (E, D) and tokens (B, N, D) to events with a further event per example."""
        target_BD = sum_tokens(tokens_BND, self.places)
        product_ED = sequence.values_ED * target_BD.index_select(0, sequence.example_index())
        met_ED = sequence.values_ED + self.linear(product_ED)
        return sequence.with_values(met_ED).append(target_BD.unsqueeze(1))
