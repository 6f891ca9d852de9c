"""Sums the tokens of the candidate item, and lets events of a history meet it.

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
        indices: along N, not empty.
    """
    return torch.stack([tokens_BND[:, index] for index in indices]).sum(0)


class CandidateMeeting(nn.Module):
    """``[e + W (e * t) || t]``: every event ``e`` meets its example's candidate item ``t``, which follows them.

    Ours: how alike the two are is there before attention has learned to ask for it.

    Args:
        places: of the tokens whose sum is the candidate item; at least one.
        dim: D.
    """

    def __init__(self, places: Sequence[int], dim: int) -> None:
        super().__init__()
        self.places = tuple(places)
        self.linear = nn.Linear(dim, dim, bias=False)

    def forward(self, sequence: JaggedSequence, tokens_BND: Tensor) -> JaggedSequence:
        """Maps events (E, D) to the same with one event more per example, given tokens (B, N, D)."""
        target_BD = sum_tokens(tokens_BND, self.places)
        product_ED = sequence.values_ED * target_BD.index_select(0, sequence.example_index())
        met_ED = sequence.values_ED + self.linear(product_ED)
        return sequence.with_values(met_ED).append(target_BD.unsqueeze(1))
